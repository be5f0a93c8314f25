package treeat

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// Open opens a name in a directory, with O_CLOEXEC. Whether it follows a symbolic link is for the flags to say.
func Open(dirfd int, name string, flags int, mode uint32) (int, error) {
	return eintr.Retry(func() (int, error) { return unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, mode) })
}

// OpenDir opens a directory for use as the base of other calls, without following a symbolic link: ENOTDIR.
func OpenDir(dirfd int, name string) (int, error) {
	return Open(dirfd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// Lstat describes a name without following a symbolic link.
func Lstat(dirfd int, name string, st *unix.Stat_t) error {
	return eintr.Ignore(func() error { return unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

// Readlink reads the target of a symbolic link.
func Readlink(dirfd int, name string) (string, error) {
	// The kernel keeps no target longer than PATH_MAX.
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(dirfd, name, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Futimens sets the times of an open file.
func Futimens(fd int, ts *[2]unix.Timespec) error {
	// golang.org/x/sys has only the form with a name; without one the descriptor itself is meant
	// (Utimens(2), "C library/kernel ABI differences").
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Utimens sets the times of a name without following a symbolic link.
func Utimens(dirfd int, name string, ts *[2]unix.Timespec) error {
	return unix.UtimesNanoAt(dirfd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// Chmod sets the mode of a name that is not a symbolic link, and never that of a link's target.
func Chmod(dirfd int, name string, mode uint32) error {
	err := unix.Fchmodat(dirfd, name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		// Before fchmodat2 (Linux 6.6), or where a seccomp filter does not know it.
		return ChmodByFD(dirfd, name, mode)
	}
	return err
}

// ChmodByFD is Chmod through a descriptor that stands for the name itself.
func ChmodByFD(dirfd int, name string, mode uint32) error {
	fd, err := Open(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(ProcPath(fd, ""), mode)
}
