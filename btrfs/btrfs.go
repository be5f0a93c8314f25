// Package btrfs keeps layers as btrfs subvolumes. A layer is cloned by a snapshot, and removed by unlinking its
// subvolume. Its qgroup limits and measures it. The kernel's send stream compares it with another layer.
//
// The layout below the driver's home is that of moby's btrfs driver, so homes of that driver can be opened as they are.
// docs/reference/on-disk-format.md specifies the layout. Importing the package registers the graph driver "btrfs".
//
// The Backend works on Linux only. Elsewhere Init returns graphdriver.ErrNotSupported.
package btrfs

// Name is the name that the driver is registered under.
const Name = "btrfs"
