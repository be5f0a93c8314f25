package daemon

import (
	"context"
	"log/slog"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/snapshotter"
)

// measuredSnapshotter counts the limits that a snapshotter runs into, and the uses of snapshots. Interceptors count
// the rest: they see errors only in gRPC's form. A snapshot for a container tells that an engine runs.
type measuredSnapshotter struct {
	*snapshotter.Snapshotter
	metrics *metrics
	engines *enginelimits.Group
	log     *slog.Logger
}

var (
	_ snapshots.Snapshotter = measuredSnapshotter{}
	_ snapshots.Cleaner     = measuredSnapshotter{}
)

func (s measuredSnapshotter) noted(err error) error {
	s.metrics.limitHit(snapshotsService, err)
	return err
}

// Prepare implements snapshots.Snapshotter.
func (s measuredSnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	use := snapshotter.UseOf(key)
	var mounts []mount.Mount
	err := s.engines.Prepare(ctx, key, func(limit ...snapshots.Opt) (err error) {
		mounts, err = s.Snapshotter.Prepare(ctx, key, parent, append(limit, opts...)...)
		return err
	})
	if err == nil {
		s.metrics.prepared.WithLabelValues(string(use)).Inc()
	}
	if use == snapshotter.UseContainer {
		s.engines.Wake()
	}
	s.log.Debug("prepare", "key", key, "parent", parent, "use", use, "error", err)
	return mounts, s.noted(err)
}

// View implements snapshots.Snapshotter.
func (s measuredSnapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.Snapshotter.View(ctx, key, parent, opts...)
	return mounts, s.noted(err)
}

// Mounts implements snapshots.Snapshotter.
func (s measuredSnapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	if err := s.engines.CheckStart(key); err != nil {
		return nil, err
	}
	mounts, err := s.Snapshotter.Mounts(ctx, key)
	return mounts, s.noted(err)
}

// Commit implements snapshots.Snapshotter.
func (s measuredSnapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.noted(s.Snapshotter.Commit(ctx, name, key, opts...))
}

// Update implements snapshots.Snapshotter.
func (s measuredSnapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	updated, err := s.Snapshotter.Update(ctx, info, fieldpaths...)
	if err == nil && updated.Labels[snapshots.LabelSnapshotMaxSize] != "" {
		s.engines.Settled(updated.Name)
	}
	return updated, s.noted(err)
}

// Remove implements snapshots.Snapshotter.
func (s measuredSnapshotter) Remove(ctx context.Context, key string) error {
	err := s.Snapshotter.Remove(ctx, key)
	if err == nil {
		s.engines.Settled(key)
	}
	return s.noted(err)
}

// Usage implements snapshots.Snapshotter.
func (s measuredSnapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	usage, err := s.Snapshotter.Usage(ctx, key)
	return usage, s.noted(err)
}

// Cleanup implements snapshots.Cleaner.
func (s measuredSnapshotter) Cleanup(ctx context.Context) error {
	return s.noted(s.Snapshotter.Cleanup(ctx))
}
