package layertar

import (
	"errors"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

func openat(dirfd int, name string, flags int, mode uint32) (int, error) {
	return eintr.Retry(func() (int, error) { return unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, mode) })
}

// openDirAt opens a directory for use as the base of other calls, without following a symbolic link: ENOTDIR.
func openDirAt(dirfd int, name string) (int, error) {
	return openat(dirfd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// lstatat describes a name without following a symbolic link.
func lstatat(dirfd int, name string, st *unix.Stat_t) error {
	return eintr.Ignore(func() error { return unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

func readlinkat(dirfd int, name string) (string, error) {
	// The kernel keeps no target longer than PATH_MAX.
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(dirfd, name, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// futimens sets the times of an open file.
func futimens(fd int, ts *[2]unix.Timespec) error {
	// golang.org/x/sys has only the form with a name; without one the descriptor itself is meant
	// (utimensat(2), "C library/kernel ABI differences").
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// utimensat sets the times of a name without following a symbolic link.
func utimensat(dirfd int, name string, ts *[2]unix.Timespec) error {
	return unix.UtimesNanoAt(dirfd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

// chmodat sets the mode of a name that is not a symbolic link, and never that of a link's target.
func chmodat(dirfd int, name string, mode uint32) error {
	err := unix.Fchmodat(dirfd, name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		// Before fchmodat2 (Linux 6.6), or where a seccomp filter does not know it.
		return chmodByFD(dirfd, name, mode)
	}
	return err
}

// chmodByFD is chmodat through a descriptor that stands for the name itself.
func chmodByFD(dirfd int, name string, mode uint32) error {
	fd, err := openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(procPath(fd, ""), mode)
}

// procPath names the file of an O_PATH descriptor, or a name in it, for calls that take only paths.
func procPath(fd int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(fd)
	if name != "" {
		p += "/" + name
	}
	return p
}
