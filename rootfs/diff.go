package rootfs

import (
	"context"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// MountDiffer makes layers.
type MountDiffer interface {
	// DiffMounts makes a layer of the changes of upper since lower, and returns its descriptor. media is the media
	// type of the layer; the progress of the upload can be followed by ref, if it is not "".
	DiffMounts(ctx context.Context, lower, upper []mount.Mount, media, ref string) (ocispec.Descriptor, error)
}

// Diff makes a layer, compressed with gzip, of the changes of a snapshot since its parent, and returns its
// descriptor. The snapshot may be of any kind, and may be in use. Returns errdefs.ErrNotFound if there is no such
// snapshot.
func Diff(ctx context.Context, snapshotID, contentRef string, sn snapshots.Snapshotter, md MountDiffer) (ocispec.Descriptor, error) {
	desc, err := diffSnapshot(ctx, snapshotID, contentRef, sn, md)
	if err != nil {
		return ocispec.Descriptor{}, fault.Wrap("diff snapshot", snapshotID, err)
	}
	return desc, nil
}

func diffSnapshot(ctx context.Context, snapshotID, contentRef string, sn snapshots.Snapshotter, md MountDiffer) (desc ocispec.Descriptor, err error) {
	info, err := sn.Stat(ctx, snapshotID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	// Of no parent too: not every differ takes no mounts at all for an empty tree.
	err = withView(ctx, sn, info.Parent, func(lower []mount.Mount) error {
		return withMounts(ctx, sn, info, func(upper []mount.Mount) error {
			desc, err = md.DiffMounts(ctx, lower, upper, ocispec.MediaTypeImageLayerGzip, contentRef)
			return err
		})
	})
	return desc, err
}

// withMounts calls do with mounts of a snapshot of any kind.
func withMounts(ctx context.Context, sn snapshots.Snapshotter, info snapshots.Info, do func([]mount.Mount) error) error {
	if info.Kind == snapshots.KindCommitted {
		return withView(ctx, sn, info.Name, do)
	}
	mounts, err := sn.Mounts(ctx, info.Name)
	if err != nil {
		return err
	}
	return do(mounts)
}

// withView calls do with the mounts of a view, which is there as long as do runs.
func withView(ctx context.Context, sn snapshots.Snapshotter, parent string, do func([]mount.Mount) error) (err error) {
	key := viewKey(parent)
	// The view may have been made although the request for it failed: a remote one, whose answer got lost.
	defer func() { discard(ctx, sn, key, &err) }()
	mounts, err := sn.View(ctx, key, parent)
	if err != nil {
		return err
	}
	return do(mounts)
}
