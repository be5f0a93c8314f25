// Package zfsctl has the ioctls of /dev/zfs, one function each. They have the effects of the functions of libzfs_core,
// and need neither the library nor the zfs command.
//
// Numbers and layout are those of include/sys/fs/zfs.h and include/sys/zfs_ioctl.h of OpenZFS, and the same in 2.1 to 2.4.
// Open checks the version of the kernel module, and Control.Check two of its answers.
//
// The functions neither mount nor unmount. A call waits in the kernel, mostly for a transaction group. It waits for ever
// while the pool is suspended, and it may wait while another pool is being imported. No signal interrupts a call that
// changes something. When a process is killed, its call comes to its end, and until then its files stay open and locked.
package zfsctl
