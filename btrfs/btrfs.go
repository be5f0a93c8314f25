// Package btrfs keeps layers as btrfs subvolumes. A layer is cloned by a snapshot, removed by unlinking
// its subvolume, limited and measured by its qgroup, and compared by the kernel's send stream.
//
// The layout below the driver's home is that of moby's btrfs driver, so that what that driver made can be
// opened as it is; docs/reference/on-disk-format.md specifies it. Importing the package registers the graph driver
// "btrfs".
//
// The Backend works on Linux only. Elsewhere Init says that the driver is not supported.
package btrfs

// Name is the name that the driver is registered under.
const Name = "btrfs"
