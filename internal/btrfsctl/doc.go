// Package btrfsctl is the one place that speaks btrfs's ioctls. Each function is one kernel call, or one
// query made of tree searches, on descriptors that the caller keeps; errors are the kernel's, as
// unix.Errno, for the caller to wrap.
//
// Layouts and numbers are those of the kernel's include/uapi/linux/btrfs.h and btrfs_tree.h. They are the
// same on every 64-bit platform with the generic ioctl encoding; elsewhere the package is empty.
package btrfsctl
