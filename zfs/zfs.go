// Package zfs keeps layers as ZFS filesystems. A layer is a dataset, cloned from the snapshot that seals its parent.
// Properties limit and measure it, and the kernel compares it as for zfs diff. It is mounted only while somebody uses
// it.
//
// docs/reference/on-disk-format.md specifies the layout. Datasets that moby's driver made can be opened as they are.
// Importing the package registers the graph driver "zfs".
//
// Frequent questions are answered from memory and from the kernel's files, since every command that is run costs tens
// of milliseconds. The Backend works on Linux only. Elsewhere Init says that the driver is not supported.
package zfs

// Name is the name that the driver is registered under.
const Name = "zfs"
