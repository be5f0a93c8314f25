package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/snapshotter"
)

// reportLost writes a list of lost volumes, for cowshed doctor and cowshed lost.
func (d *daemon) reportLost() { d.report(lostName, d.snapshotter.Lost()) }

// reportDoomed writes a list of doomed volumes, for cowshed doctor.
func (d *daemon) reportDoomed() { d.report(doomedName, d.snapshotter.Doomed()) }

func (d *daemon) report(name string, volumes any) {
	text, err := json.Marshal(volumes)
	if err == nil {
		err = atomicfile.Write(filepath.Join(d.config.State, name), text, 0o600)
	}
	if err != nil {
		d.log.Warn("a list of volumes cannot be written for cowshed doctor", "file", name, "error", err)
	}
}

// WithSnapshotter calls f with the snapshotter of a daemon that does not run, which New brings into order first.
// Returns errdefs.ErrFailedPrecondition if the daemon runs.
func WithSnapshotter(ctx context.Context, c Config, log *slog.Logger, f func(*snapshotter.Snapshotter) error) (err error) {
	if err := c.Validate(); err != nil {
		return err
	}
	lock, err := lockRoot(c.Root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, flock.Release(lock)) }()
	dir, driver, err := holdContainerdDriver(ctx, c, log)
	if err != nil {
		return err
	}
	s, err := newSnapshotter(ctx, c, dir, driver, log)
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.Close())
}

// Repair makes the metadata of a daemon that does not run anew, if it is damaged; see snapshotter.Repair. Returns
// errdefs.ErrFailedPrecondition if the daemon runs.
func Repair(ctx context.Context, c Config, log *slog.Logger) (_ *snapshotter.Repaired, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	lock, err := lockRoot(c.Root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, flock.Release(lock)) }()
	dir, driver, err := holdContainerdDriver(ctx, c, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, driver.Cleanup()) }()
	return snapshotter.Repair(ctx, dir, driver.Backend(), snapshotter.Options{Layers: layersOf(dir, driver, log), Logger: log})
}
