// Package zfs keeps layers as ZFS filesystems. A layer is a dataset; it is cloned from the snapshot that seals
// its parent, limited and measured by its properties, compared by zfs diff, and mounted only while somebody
// uses it.
//
// docs/reference/on-disk-format.md specifies the layout. Datasets that moby's driver made can be opened as they are.
// Importing the package registers the graph driver "zfs".
//
// What is read often is answered from memory and from the kernel's files; every command that is run costs tens
// of milliseconds. The Backend works on Linux only. Elsewhere Init says that the driver is not supported.
package zfs

// Name is the name that the driver is registered under.
const Name = "zfs"
