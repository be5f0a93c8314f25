package rootfs_test

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/rootfs"
	"github.com/cowshed/cowshed/snapshotter"
)

// An image becomes the root filesystem of a container, and the changes of the container become a layer.
func Example() {
	run := func(ctx context.Context, layers []rootfs.Layer, sn *snapshotter.Snapshotter, store content.Store) (ocispec.Descriptor, error) {
		differ := snapshotter.NewDiffer(sn, store)
		chainID, err := rootfs.ApplyLayers(ctx, layers, sn, rootfs.FromApplier(differ))
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		mounts, err := rootfs.InitRootFS(ctx, "container", chainID, false, sn, rootfs.HostMounter{})
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		_ = mounts // and on them runs the container
		return rootfs.Diff(ctx, "container", "upload", sn, rootfs.FromComparer(differ))
	}
	_ = run
}
