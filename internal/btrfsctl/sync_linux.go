package btrfsctl

import (
	"time"
	"unsafe"
)

// firstPause is the pause after which Commit asks for a commit again. Each further pause is twice as long.
const firstPause = 20 * time.Millisecond

// Commit makes everything that has been changed on the filesystem of fd durable, file data included
// where delayed allocation has been started; metadata operations on subvolumes and qgroups always are.
//
// The kernel asks its thread for the commit by one bit, and waits until the thread begins. While another transaction ends, the
// thread takes the bit for that one, and begins with the next interval, 30 s later. So Commit asks again meanwhile.
func Commit(fd int) error {
	return askAgain(func() error {
		var transid uint64
		err := startCommit(fd, &transid)
		if err == nil {
			err = ioctl(fd, iocWaitSync, unsafe.Pointer(&transid))
		}
		return err
	}, func() error {
		var newer uint64
		return startCommit(fd, &newer)
	})
}

// askAgain calls commit, and ask as long as any call has not returned: the thread may take the bit of each of them. The growing
// pauses end that also where others commit all the time, and a filesystem that hangs holds few threads.
func askAgain(commit, ask func() error) error {
	ended := make(chan error)
	go func() { ended <- commit() }()
	pause := firstPause
	timer := time.NewTimer(pause)
	defer timer.Stop()
	var firstErr error
	for calls := 1; calls > 0; {
		select {
		case err := <-ended:
			calls--
			if firstErr == nil {
				firstErr = err
			}
		case <-timer.C:
			calls++
			go func() { ended <- ask() }()
			pause *= 2
			timer.Reset(pause)
		}
	}
	return firstErr
}

func startCommit(fd int, transid *uint64) error {
	return ioctl(fd, iocStartSync, unsafe.Pointer(transid))
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
