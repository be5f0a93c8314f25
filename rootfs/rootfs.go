// Package rootfs makes root filesystems of image layers on any of containerd's snapshotters. It applies chains of
// layers, makes layers of snapshots, and prepares the root filesystems of containers. Its functions are those that
// containerd's package of this name began with, on the types that containerd has today.
//
// # Layers and snapshots
//
// A chain of layers becomes a chain of committed snapshots. Each has the name that the OCI image specification gives
// to the layers up to it: their chain ID, which follows from the digests of their uncompressed tars alone. So any
// number of goroutines, processes and clients may apply the same layers at once, and all of them end up with the same
// snapshots. containerd itself and everything around it use these names too.
//
// # Temporary snapshots
//
// A function leaves only the snapshots that its contract names. Others, such as a snapshot to extract a layer into or
// a view to compare with, have unique keys. The function removes them in the end, also after an error and after the
// end of its context. For that it takes up to ten seconds longer than the context allows. Some snapshotters,
// Cowshed's among them, put off the destruction of removed snapshots until their owner calls Cleanup.
//
// On a snapshotter of a running containerd, snapshots without a lease or label are garbage, also while they are being
// made: give a context with a namespace and a lease.
//
// # Errors
//
// Errors name the operation and its layer or snapshot, and are matched with errors.Is against containerd/errdefs.
// Errors of the snapshotter, the applier, the differ and the mounter keep their types.
package rootfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// removeTimeout bounds the removal of an operation's temporary snapshots, which also happens once its own context has
// ended.
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

// committed reports whether there is a committed snapshot of that name. Returns errdefs.ErrFailedPrecondition if it
// is the key of a snapshot of another kind.
func committed(ctx context.Context, sn snapshots.Snapshotter, name string) (bool, error) {
	info, err := sn.Stat(ctx, name)
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case info.Kind != snapshots.KindCommitted:
		return false, fault.New(errdefs.ErrFailedPrecondition, "snapshot %q is not committed", name)
	}
	return true, nil
}

// afterwards is the context of the steps after an operation, whatever has become of its own.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
}

// discard removes a temporary snapshot of an operation, if it exists. A failure becomes a part of the operation's
// error. If the operation has succeeded, it goes to the logger of ctx.
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
	log.G(ctx).WithError(err).WithField("key", key).Warn("rootfs: snapshot is left over")
}
