// Package dockerroot reads the graph roots of Docker since 1.10, such as /var/lib/docker, for package migrate.
//
// A root has a part for each graph driver that it was used with:
//
//	image/DRIVER/imagedb/content/sha256/ID       configuration of an image, whose digest is ID
//	image/DRIVER/repositories.json               names of images
//	image/DRIVER/layerdb/sha256/CHAIN/           a layer of images: diff, parent, cache-id, size, tar-split.json.gz
//	image/DRIVER/layerdb/mounts/CONTAINER/       the layers of a container: mount-id, init-id, parent
//	containers/CONTAINER/                        config.v2.json, hostconfig.json
//	DRIVER/                                      the contents of the layers
//
// The drivers btrfs, zfs, overlay2, fuse-overlayfs, vfs and aufs are known.
//
// Nothing is taken as it is written there. Chain IDs are computed anew, and so are the digests of configurations. IDs have
// the form that Docker gives them, and are found once. The driver's own records of parents must agree with the layerdb.
// Files and lists are bounded.
package dockerroot
