package tocontainerd

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// withTree calls do with the root directory of mounts, which nobody else can reach: the tree has a path only for the
// moment in which it is opened, in a directory that only root can enter.
func withTree(mounts []mount.Mount, do func(dir *os.File) error) (err error) {
	dir, err := openMounts(mounts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return do(dir)
}

func openMounts(mounts []mount.Mount) (_ *os.File, err error) {
	at, err := os.MkdirTemp("", "cowshed-migrate-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(at)) }()
	if err := mount.All(mounts, at); err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(at, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	for range mounts {
		err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)) // it stays until dir is closed
	}
	if err != nil && dir != nil {
		err = errors.Join(err, dir.Close())
	}
	return dir, err
}

// syncTree makes the filesystem of a directory durable.
func syncTree(dir *os.File) error {
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync filesystem: %w", err)
	}
	return nil
}
