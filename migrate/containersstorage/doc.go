// Package containersstorage reads the roots of containers/storage, as podman, CRI-O and buildah keep them:
// /var/lib/containers/storage.
//
// A root has four directories for each driver:
//
//	overlay            the layers, as the driver keeps them
//	overlay-layers     layers.json, volatile-layers.json, and ID.tar-split.gz for each layer of an image
//	overlay-images     images.json, and ID/ with manifests and configuration
//	overlay-containers containers.json, volatile-containers.json, and ID/userdata
//
// The drivers are overlay, by the kernel or by fuse-overlayfs, btrfs, vfs and zfs. Podman keeps its own database of
// containers (libpod), which this package neither reads nor changes.
//
// The reader leaves out these things, each with its reason:
//
//   - layers that are marked as incomplete
//   - layers and containers with mapped ids
//   - layers in other stores (additionalimagestores)
//   - layers of composefs
//   - layers of images without the digest of their tar
package containersstorage
