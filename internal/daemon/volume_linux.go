package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/containerexec"
	"github.com/cowshed/cowshed/internal/containername"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/snapshotter"
)

// answerTimeout is how long VolumeOf waits for a daemon.
const answerTimeout = 5 * time.Second

// VolumeOf returns the volume of the snapshot that a client of containerd calls key in its namespace. It asks the daemon. If
// that does not run, it opens the daemon's snapshotter itself, which may have much to recover. Returns errdefs.ErrNotFound if
// there is no such snapshot, and context.DeadlineExceeded if the daemon does not answer.
func VolumeOf(ctx context.Context, c Config, log *slog.Logger, namespace, key string) (volume string, err error) {
	if err := checkHome(c); err != nil {
		return "", err
	}
	volume, err = AskVolumeOf(ctx, c, namespace, key)
	if !errdefs.IsUnavailable(err) {
		return volume, err
	}
	unavailable := err
	err = WithSnapshotter(ctx, c, log, func(s *snapshotter.Snapshotter) error {
		volume, err = s.VolumeOf(ctx, namespace, key)
		return err
	})
	if errdefs.IsFailedPrecondition(err) { // another daemon has the root, which listens elsewhere
		err = errors.Join(unavailable, err)
	}
	return volume, err
}

// AskVolumeOf is VolumeOf that only asks the daemon, and opens nothing. Returns errdefs.ErrUnavailable if the daemon does not run.
func AskVolumeOf(ctx context.Context, c Config, namespace, key string) (volume string, err error) {
	conn, err := containerdapi.Dial(c.Address)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return snapshotter.VolumesClient{Conn: conn}.VolumeOf(ctx, namespace, key)
}

// ProcessOf returns a function that finds the first process of the container that has a volume, 0 if none runs.
func ProcessOf(c Config) func(ctx context.Context, volume string) (pid uint32, err error) {
	return func(ctx context.Context, volume string) (pid uint32, err error) {
		id, ok := containername.Of(volume)
		if !ok || id.ID == "" || !snapshotter.IsVolumeName(volume) { // no engine's container, but perhaps a fork
			return 0, nil
		}
		return layerref.Resolver{Containerd: c.ContainerdAddress}.Process(ctx, id.Namespace, id.ID)
	}
}

// ContainersOf runs commands in the containers of a daemon's volumes, which it finds by the keys of their snapshots.
func ContainersOf(c Config) live.Containers {
	with := func(ctx context.Context, e live.Exec, do func(command containerexec.Command, conn *grpc.ClientConn) error) (err error) {
		id, ok := containername.Of(e.Volume)
		if !ok || id.ID == "" || !snapshotter.IsVolumeName(e.Volume) {
			return fault.New(errdefs.ErrInvalidArgument, "%s is no container", e.Volume)
		}
		conn, err := containerdapi.Dial(c.ContainerdAddress)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		finding, cancel := context.WithTimeout(ctx, answerTimeout) // and the command has all of its own time
		container, err := layerref.ContainerOf(finding, conn, id.Namespace, id.ID)
		cancel()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errdefs.IsNotFound(err):
			return fmt.Errorf("%w: %v", live.ErrNoContainer, err) //nolint:errorlint // ErrNotFound would mean the volume
		case err != nil:
			return err
		}
		return do(containerexec.Command{Namespace: id.Namespace, Container: container.GetID(), ID: e.ID, Args: e.Args, Env: e.Env, Timeout: e.Timeout}, conn)
	}
	return live.Containers{
		Run: func(ctx context.Context, e live.Exec) error {
			return with(ctx, e, func(command containerexec.Command, conn *grpc.ClientConn) error { return command.Run(ctx, conn) })
		},
		Kill: func(ctx context.Context, e live.Exec) error {
			err := with(ctx, e, func(command containerexec.Command, conn *grpc.ClientConn) error { return command.Kill(ctx, conn) })
			if errors.Is(err, live.ErrNoContainer) { // and so its processes are gone
				return nil
			}
			return err
		},
	}
}

// OpenHome opens the driver of a daemon's snapshots beside the daemon, which may run. dir is the root of the driver. Returns
// errdefs.ErrNotFound if no daemon has ever kept snapshots there.
func OpenHome(ctx context.Context, c Config, log *slog.Logger) (dir string, driver *cowdriver.Driver, err error) {
	if err := c.Validate(); err != nil {
		return "", nil, err
	}
	if err := checkHome(c); err != nil {
		return "", nil, err
	}
	return openContainerdDriver(ctx, c, log)
}

// checkHome makes sure that a daemon has kept snapshots in its root. Otherwise opening them would make directories.
func checkHome(c Config) error {
	_, err := os.Stat(filepath.Join(c.Root, containerdDir))
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.New(errdefs.ErrNotFound, "there are no containers in %s: cowshed serve has kept none there", c.Root)
	}
	return err
}
