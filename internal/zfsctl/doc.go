// Package zfsctl has the ioctls of /dev/zfs, one function each. They have the effects of the functions of libzfs_core,
// and need neither the library nor the zfs command.
//
// Numbers and layout are those of include/sys/fs/zfs.h and include/sys/zfs_ioctl.h of OpenZFS, and the same in 2.1 to 2.4.
// Open checks the version of the kernel module.
//
// The functions neither mount nor unmount. A call waits in the kernel, mostly for a transaction group, and for ever while
// the pool is suspended. No signal interrupts a call that changes something. When a process is killed, its call comes to
// its end, and until then its files stay open and locked.
package zfsctl
