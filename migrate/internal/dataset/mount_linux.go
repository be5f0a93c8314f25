package dataset

import (
	"context"
	"errors"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Open mounts a dataset on no directory, for reading, and opens its root. The mount ends when the caller closes the
// root. If the dataset is mounted elsewhere for writing, its filesystem stays writable, and the mount does not.
func Open(ctx context.Context, dataset string) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, err := mountDetached(dataset, true)
	if errors.Is(err, unix.EBUSY) {
		dir, err = mountDetached(dataset, false)
	}
	if errors.Is(err, unix.ENOENT) {
		err = fault.As(errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, fault.Wrap("mount dataset", dataset, err)
	}
	return dir, nil
}

func mountDetached(dataset string, readOnly bool) (*os.File, error) {
	filesystem, err := unix.Fsopen("zfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(filesystem)
	if err := unix.FsconfigSetString(filesystem, "source", dataset); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	if readOnly {
		if err := unix.FsconfigSetFlag(filesystem, "ro"); err != nil {
			return nil, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(filesystem); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	const attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	mount, err := unix.Fsmount(filesystem, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), dataset), nil
}
