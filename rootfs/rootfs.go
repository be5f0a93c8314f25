// Package rootfs makes root filesystems of image layers on any of containerd's snapshotters: it applies chains of
// layers, makes layers of snapshots, and prepares what a container is to run on. Its functions are those that
// containerd's package of this name began with, on the types that containerd has today.
//
// # Layers and snapshots
//
// A chain of layers becomes a chain of committed snapshots. Each has the name that the OCI image specification
// gives to the layers up to it: their chain ID, which follows from the digests of their uncompressed tars alone.
// So any number of goroutines, processes and clients may apply the same layers at once, and all of them end up
// with the same snapshots. containerd itself and everything around it use these names too.
//
// # What is left behind
//
// Nothing but what a function says it makes. Whatever else it needs, a snapshot to extract a layer into or a view
// to compare with, has a key that nobody else has, and is removed in the end, also after an error and after the
// context was cancelled. For that it takes up to ten seconds longer than the context allows. Snapshotters that
// put off the destruction of what is removed, as Cowshed's does, destroy it when their Cleanup is called, which is
// for their owner to do.
//
// On a snapshotter of a running containerd, whatever no lease or label refers to is garbage, also while it is being
// made: give a context with a namespace and a lease.
//
// # Errors
//
// They say what was done to which layer or snapshot, and are matched with errors.Is against containerd/errdefs;
// those of the snapshotter, the applier, the differ and the mounter keep their types.
package rootfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// removeTimeout bounds the removal of what an operation made for itself, which also happens once its own context
// has ended.
const removeTimeout = 10 * time.Second

// extractionKey is a key for a snapshot of one's own that is to be committed under a name. It has the form by
// which snapshotters tell that content of an image is going to be written to it, to which no limit applies.
func extractionKey(name string) string {
	return fmt.Sprintf(snapshots.UnpackKeyFormat, rand.Text(), name)
}

// viewKey is a key for a view of one's own.
func viewKey(snapshot string) string {
	return fmt.Sprintf("view-%s %s", rand.Text(), snapshot)
}

// committed reports whether there is a committed snapshot of that name. errdefs.ErrFailedPrecondition: it is the
// key of one that is not committed.
func committed(ctx context.Context, sn snapshots.Snapshotter, name string) (bool, error) {
	info, err := sn.Stat(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case info.Kind != snapshots.KindCommitted:
		return false, fmt.Errorf("snapshot %q is not committed: %w", name, errdefs.ErrFailedPrecondition)
	}
	return true, nil
}

// afterwards is the context of what is to be done when an operation is over, whatever has become of its own.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
}

// discard removes a snapshot that an operation made for itself, if it is there. What cannot be removed
// becomes a part of the operation's error; if it had none, it has done what it should, and the log is told.
func discard(ctx context.Context, sn snapshots.Snapshotter, key string, operation *error) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	err := sn.Remove(ctx, key)
	if err == nil || errdefs.IsNotFound(err) {
		return
	}
	if *operation != nil {
		*operation = errors.Join(*operation, fmt.Errorf("remove %q: %w", key, err))
		return
	}
	slog.WarnContext(ctx, "rootfs: snapshot is left over", "key", key, "error", err)
}
