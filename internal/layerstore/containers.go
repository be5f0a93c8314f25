package layerstore

import (
	"context"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/snapshotter"
)

// engineTimeout is how long an engine may take to say which snapshot a container has.
const engineTimeout = 5 * time.Second

// VolumeOf finds the volume that a reference names, without its snapshot. It asks the engine for the snapshot of a container, and
// volumeOf for the volume of that.
func VolumeOf(ctx context.Context, name string, engines layerref.Resolver, volumeOf func(ctx context.Context, namespace, key string) (string, error)) (string, error) {
	ref, err := layerref.Parse(name)
	if err != nil {
		return "", err
	}
	if ref.Kind == layerref.Fork {
		return ref.Name, CheckFork(ref.Name)
	}
	namespace, key, err := snapshotOf(ctx, ref, engines)
	if err != nil {
		return "", err
	}
	return volumeOf(ctx, namespace, key)
}

// snapshotOf asks the engine for the snapshot of a container.
func snapshotOf(ctx context.Context, ref layerref.Reference, engines layerref.Resolver) (namespace, key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	return engines.Snapshot(ctx, ref)
}

// Limiter is the part of a snapshotter that limits containers.
type Limiter interface {
	// Key finds the snapshot that a client of containerd calls own in its namespace.
	Key(ctx context.Context, namespace, own string) (key string, err error)
	Stat(ctx context.Context, key string) (snapshots.Info, error)
	Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error)
}

// LimitContainer sets the limit of the container that a reference names. Returns errdefs.ErrFailedPrecondition if the container holds
// more than that, or if its snapshot has no limit of its own.
func LimitContainer(ctx context.Context, ref layerref.Reference, bytes uint64, engines layerref.Resolver, l Limiter) error {
	if ref.Snapshot != "" {
		return fault.Said(errdefs.ErrInvalidArgument, "a snapshot has no limit: name the container")
	}
	if bytes == 0 {
		return fault.Said(errdefs.ErrInvalidArgument, "the limit of a container can be raised, and not be removed: give a size")
	}
	namespace, own, err := snapshotOf(ctx, ref, engines)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	key, err := l.Key(ctx, namespace, own)
	if err != nil {
		return err
	}
	info, err := l.Stat(ctx, key)
	if err != nil {
		return err
	}
	if info.Kind != snapshots.KindActive || snapshotter.UseOf(key) == snapshotter.UseUnpack {
		return fault.Said(errdefs.ErrFailedPrecondition, "snapshot %s in the namespace %s is not the snapshot of a container, and has no limit of its own",
			own, namespace)
	}
	const label = snapshots.LabelSnapshotMaxSize
	limited := snapshots.Info{Name: key, Labels: map[string]string{label: strconv.FormatUint(bytes, 10)}}
	_, err = l.Update(ctx, limited, "labels."+label)
	return err
}
