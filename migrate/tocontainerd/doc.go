// Package tocontainerd makes layers, images and containers in a containerd that uses Cowshed's snapshotter. In namespace
// "moby" they are those of Docker 29 and later.
//
// # Layers
//
// A layer of an image is a snapshot under its chain ID, as if containerd had unpacked it. Besides there is a blob with the
// tar of the layer. The tar is put together again from the files and the parts that the old root has kept. Its digest is the
// diff ID of the layer, or the layer does not come along. The blob is compressed anew, so its own digest is not that of
// the registry. A volume on Cowshed's own filesystem is adopted and not copied: see snapshotter.Snapshotter.Offer.
//
// # Images
//
// The configuration of an image is kept as it is. Its manifest is new, because the digests of compressed layers are.
// So references with the digest of a registry's manifest (migrate.Image.Digests) are not kept. Docker 29 names an image
// by the digest of the manifest: the ID that "docker images" shows is new, and Docker 29 finds no image by its
// former ID. Kubernetes and nerdctl know an image by its configuration, whose digest is the former ID.
//
// An image without a name gets the name that Docker gives it (moby-dangling@DIGEST), or the digest of its manifest in
// other namespaces.
//
// # Containers
//
// In namespace "moby" a container keeps its ID, name, configuration, writable layer and limit. Its layers are snapshots
// and leases as Docker makes them. Commit changes the driver and the image in the container's config.v2.json; that is the
// moment at which Docker 29 finds the container.
//
// In other namespaces the writable layer of a container becomes an active snapshot with the container's ID, which the
// label containerd.io/gc.root keeps. A record of containerd needs a runtime specification that only the container's
// program can make, so there is none. The label [NameLabel] of the snapshot has the container's name.
//
// # Crashes
//
// A lease without an end holds all that was made until Commit or Undo, so an interrupted migration can go on later. A
// snapshot is committed when it is filled. The writable layer of a container cannot be: while it is filled its label
// [FillingLabel] says so. After a crash such a snapshot is removed and made anew.
package tocontainerd
