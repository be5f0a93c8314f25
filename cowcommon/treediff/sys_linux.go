package treediff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// kind is the type of a name's file: a d_type of getdents64(2), which is st_mode>>12, or absent.
type kind uint8

const (
	unknown kind = unix.DT_UNKNOWN
	dirKind kind = unix.DT_DIR
	absent  kind = 0xff
)

func kindOf(st *unix.Statx_t) kind { return kind(st.Mode & unix.S_IFMT >> 12) }

// entry is one name in a directory.
type entry struct {
	name string
	ino  uint64 // d_ino; at a mount or subvolume boundary not the number that stat gives
	kind kind
}

// lister reads directories and uses its memory again for the next.
type lister struct {
	buf   []byte
	names []byte // all names, joined
	ends  []int  // where each ends in names
}

// direntBufSize is how many bytes of directory entries are asked for at once, enough for most directories.
const direntBufSize = 32 << 10

// list replaces entries by the entries of the directory open as fd, in the filesystem's order. The layout of struct
// linux_dirent64 (d_ino, d_off, d_reclen, d_type, d_name) is from getdents(2).
func (l *lister) list(fd int, entries []entry) ([]entry, error) {
	if l.buf == nil {
		l.buf = make([]byte, direntBufSize)
	}
	l.names, l.ends, entries = l.names[:0], l.ends[:0], entries[:0]
	for {
		n, err := eintr.Retry(func() (int, error) { return unix.ReadDirent(fd, l.buf) })
		// A directory that is removed while it is open has no entries any more: ENOENT.
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return entries, err
		}
		if n <= 0 {
			break
		}
		for b := l.buf[:n]; len(b) > 0; {
			ino := binary.NativeEndian.Uint64(b)
			size := binary.NativeEndian.Uint16(b[16:])
			name := b[19:size]
			name = name[:bytes.IndexByte(name, 0)]
			if ino != 0 && string(name) != "." && string(name) != ".." {
				l.names = append(l.names, name...)
				l.ends = append(l.ends, len(l.names))
				entries = append(entries, entry{ino: ino, kind: kind(b[18])})
			}
			b = b[size:]
		}
	}

	names := string(l.names)
	start := 0
	for i, end := range l.ends {
		entries[i].name = names[start:end]
		start = end
	}
	return entries, nil
}

// openDir opens a directory by one name, or "..", below the directory dir, without following a symbolic link.
func openDir(dir int, name string) (int, error) {
	return openRetry(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
}

// openRoot opens the root of a tree by a path that the caller chose.
func openRoot(path string) (int, error) {
	return openRetry(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
}

// openFile opens a regular file for reading. Should the name have become something else by now, this neither
// follows nor blocks.
func openFile(dir int, name string) (int, error) {
	return openRetry(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
}

func openRetry(dir int, name string, flags int) (int, error) {
	return eintr.Retry(func() (int, error) { return unix.Openat(dir, name, flags, 0) })
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// statAt describes the file of a name in the directory dir, without following a symbolic link.
func statAt(dir int, name string, st *unix.Statx_t) error {
	return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, st)
}

// statFd describes an open file.
func statFd(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, st)
}

// noSuch reports whether an error says that no file has the name: either it is not there, or none can be.
func noSuch(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG)
}

// notDir reports whether openDir failed because the name stands for something else than a directory.
func notDir(err error) bool {
	return errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// capabilityXattr holds file capabilities, in at most 24 bytes (linux/capability.h, struct vfs_ns_cap_data).
const capabilityXattr = "security.capability"

// capability is the value of the extended attribute security.capability; a zero length stands for none.
type capability struct {
	buf [64]byte
	n   int
}

func (c *capability) equal(other *capability) bool {
	return bytes.Equal(c.buf[:c.n], other.buf[:other.n])
}

// readFd reads the capability of an open file.
func (c *capability) readFd(fd int) error {
	n, err := unix.Fgetxattr(fd, capabilityXattr, c.buf[:])
	return c.done(n, err)
}

// readAt reads the capability of the file of a name in the directory dir, without following a symbolic link.
func (c *capability) readAt(dir int, name string) error {
	n, err := getxattrat(dir, name, c.buf[:])
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		n, err = getxattrProc(dir, name, c.buf[:])
	}
	return c.done(n, err)
}

// done reports no capability for four errors: no such attribute (ENODATA), a filesystem without attributes
// (EOPNOTSUPP), a capability of another user namespace (EOVERFLOW), and a capability that this kernel cannot read
// (EINVAL). A file that vanished has no capability either.
func (c *capability) done(n int, err error) error {
	c.n = max(n, 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EOVERFLOW),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		c.n = 0
		return nil
	}
	return err
}

// xattrArgs is struct xattr_args of linux/xattr.h.
type xattrArgs struct {
	value uint64 // a pointer
	size  uint32
	flags uint32
}

var capabilityXattrZ = append([]byte(capabilityXattr), 0)

// getxattrat reads security.capability with getxattrat(2), Linux 6.13. buf must not be on the stack.
func getxattrat(dir int, name string, buf []byte) (int, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	args := &xattrArgs{value: uint64(uintptr(unsafe.Pointer(&buf[0]))), size: uint32(len(buf))}
	n, _, errno := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(&capabilityXattrZ[0])),
		uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// procFd tells whether descriptors can be reached by path.
var procFd = sync.OnceValue(func() error { return unix.Access("/proc/self/fd", unix.X_OK) })

// getxattrProc does the same by way of /proc, for kernels without getxattrat.
func getxattrProc(dir int, name string, buf []byte) (int, error) {
	if procFd() != nil {
		return 0, unix.ENOSYS
	}
	return unix.Lgetxattr("/proc/self/fd/"+strconv.Itoa(dir)+"/"+name, capabilityXattr, buf)
}
