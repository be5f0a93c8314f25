package btrfsctl

import "unsafe"

// Commit makes everything that has been changed on the filesystem of fd durable, file data included
// where delayed allocation has been started; metadata operations on subvolumes and qgroups always are.
func Commit(fd int) error {
	var transid uint64
	if err := ioctl(fd, iocStartSync, unsafe.Pointer(&transid)); err != nil {
		return err
	}
	return ioctl(fd, iocWaitSync, unsafe.Pointer(&transid))
}

// WakeCleaner commits the transaction and wakes the thread that frees the space of destroyed subvolumes,
// which otherwise sleeps up to the commit interval (30 s).
func WakeCleaner(fd int) error {
	return ioctl(fd, iocSync, nil)
}

type syncWaitArgs struct {
	subvolid uint64
	mode     uint32
	count    uint32
}

// Modes of BTRFS_IOC_SUBVOL_SYNC_WAIT.
const (
	syncWaitForOne    = 0
	syncWaitForQueued = 1
)

// WaitDropped waits until the destroyed subvolume id has been dropped and its space is free. Returns ENOENT if it has
// been already, or never was. Returns ENOTTY if the kernel is older than 6.13, and EAGAIN if the subvolume still
// exists.
func WaitDropped(fd int, id uint64) error {
	args := syncWaitArgs{subvolid: id, mode: syncWaitForOne}
	return ioctl(fd, iocSubvolSyncWait, unsafe.Pointer(&args))
}

// WaitAllDropped waits until every subvolume that is destroyed at this moment has been dropped.
func WaitAllDropped(fd int) error {
	args := syncWaitArgs{mode: syncWaitForQueued}
	return ioctl(fd, iocSubvolSyncWait, unsafe.Pointer(&args))
}
