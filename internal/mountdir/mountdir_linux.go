package mountdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// source is the source of the filesystems in memory that have the mount points.
const source = "cowshed-mount-points"

// KeepPrivate mounts a private filesystem in memory on dir, unless something is mounted there. So mounts below do not
// appear in other mount namespaces, where they would keep volumes busy, and mount points need no space.
func KeepPrivate(dir string, gid int) error {
	mounted, err := mountinfo.Mounted(dir)
	if err != nil || mounted {
		return err
	}
	data := fmt.Sprintf("mode=0710,uid=%d,gid=%d", os.Getuid(), gid)
	if err := unix.Mount(source, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: dir, Err: err}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return &os.PathError{Op: "make private", Path: dir, Err: err}
	}
	return nil
}

// Release undoes KeepPrivate, unless something is still mounted below dir.
func Release(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if len(mounts) > 0 && mounts[0].Source == source { // else the mount is somebody else's
		if err = Unmount(dir); errors.Is(err, unix.EBUSY) {
			err = nil
		}
	}
	if err != nil {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return nil
}

// Unmount is unmount(2). It also succeeds while a child of this process is on its way to its program. Until then, the child
// has the files of this process open. It closes them one after another, and lets fork return before it has closed all. So
// Unmount tries again for a tenth of a second if the mount is busy.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	syscall.ForkLock.RLock()
	syscall.ForkLock.RUnlock() //nolint:staticcheck,gocritic // only waits for the lock
	for pause := time.Millisecond; errors.Is(err, unix.EBUSY) && pause < 100*time.Millisecond; pause *= 2 {
		time.Sleep(pause)
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	}
	return err
}

// Remove unmounts all mounts on dir and removes the directory. With detach it unmounts busy mounts too. They vanish
// from here, and live on until their last user is gone. If other mount namespaces have a copy of a mount, the kernel
// unmounts the copy when the directory goes.
func Remove(dir string, detach bool) error {
	for {
		err := Unmount(dir)
		if detach && errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing is mounted on dir
			break
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mount point: %w", err)
	}
	return nil
}

// RemoveFiles removes the files and empty directories in dir. Directories on which something is mounted stay.
func RemoveFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if err := os.Remove(filepath.Join(dir, entry.Name())); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
