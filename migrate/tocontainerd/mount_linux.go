package tocontainerd

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// withTree calls do with the root directory of mounts, which nobody else can reach: they are made in a mount namespace of
// a thread's own, which ends with the thread. So a process that is killed leaves no mount.
func withTree(mounts []mount.Mount, do func(dir *os.File) error) (err error) {
	dir, err := openMounts(mounts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return do(dir)
}

// openMounts opens the root directory of mounts. They stay until it is closed.
func openMounts(mounts []mount.Mount) (dir *os.File, err error) {
	at, err := os.MkdirTemp("", "cowshed-migrate-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(at)) }()
	done := make(chan struct{})
	onOwnThread(func() {
		defer close(done)
		dir, err = openApart(mounts, at)
	})
	<-done
	return dir, err
}

// onOwnThread calls f in a goroutine whose thread ends with it.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process never ends, so it is held until another one has run f.
			defer runtime.UnlockOSThread()
			done := make(chan struct{})
			onOwnThread(func() { defer close(done); f() })
			<-done
			return
		}
		f()
	}()
}

// openApart makes the mounts in a mount namespace of this thread's own.
func openApart(mounts []mount.Mount, at string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil { // and CLONE_FS, which it implies
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := mount.All(mounts, at); err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(at, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	// The directory keeps its own mount alone, and the namespace nothing.
	if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return nil, errors.Join(fmt.Errorf("unmount: %w", err), dir.Close())
	}
	return dir, nil
}

// syncTree makes the filesystem of a directory durable.
func syncTree(dir *os.File) error {
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync filesystem: %w", err)
	}
	return nil
}
