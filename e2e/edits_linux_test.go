package e2e

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func errorsIs(err, target error) bool { return errors.Is(err, target) }

// writeFile is os.WriteFile for regular files only: it neither waits at a fifo nor writes to a device.
func writeFile(path string, content []byte) (err error) {
	f, err := openRegular(path, os.O_CREATE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.Write(content)
	return err
}

// openRegular opens a file for reading and writing if it is a regular one.
func openRegular(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|flags, 0o644)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(unix.EINVAL, f.Close())
	}
	return f, nil
}

// overwrite writes over the start of a file and gives it its former size and times. This hides the change from
// programs that look at lstat only.
func overwrite(path string, content []byte) (err error) {
	f, err := openRegular(path, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	if err := f.Truncate(stat.Size); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stat.Atim, stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// replaceByCopy puts a copy of a file, times and mode included, in its place: another inode that looks and
// is the same.
func replaceByCopy(path string) (err error) {
	f, err := openRegular(path, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return err
	}
	content := make([]byte, stat.Size)
	if _, err := f.ReadAt(content, 0); err != nil && stat.Size > 0 {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	if err := os.Chown(path, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(path, stat.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{stat.Atim, stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
