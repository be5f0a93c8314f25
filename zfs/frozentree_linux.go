package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/eintr"
)

// frozenTree reads the tree of a mounted snapshot. Paths are relative to the root of the tree, and "" is that root.
//
// The owner of the tree has chosen the names in paths. They are resolved without following symbolic links and without
// leaving the filesystem, so nothing outside is ever looked at.
type frozenTree struct {
	fd  int
	dir string // for errors
	buf []byte
}

func openFrozenTree(dir string) (*frozenTree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &frozenTree{fd: fd, dir: dir, buf: make([]byte, 64<<10)}, nil
}

func (t *frozenTree) close() { _ = unix.Close(t.fd) }

// open opens the file at a path. With O_PATH and O_NOFOLLOW it opens a symbolic link itself.
func (t *frozenTree) open(path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	how := &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	return eintr.Retry(func() (int, error) { return unix.Openat2(t.fd, path, how) })
}

// stat describes the file at a path; ok is false if there is no file.
func (t *frozenTree) stat(path string) (stat unix.Statx_t, ok bool, err error) {
	fd, err := t.open(path, unix.O_PATH|unix.O_NOFOLLOW)
	if err == nil {
		const mask = unix.STATX_TYPE | unix.STATX_NLINK | unix.STATX_INO | unix.STATX_CTIME | unix.STATX_BTIME
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, mask, &stat)
		_ = unix.Close(fd)
	}
	if isAbsent(err) {
		return stat, false, nil
	}
	return stat, err == nil, t.fail("stat", path, err)
}

// isAbsent reports whether err says that a path leads nowhere. ELOOP says so of a symbolic link on the way.
func isAbsent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// fail adds the operation and the path to err. If the kernel cannot look a path up, the result is a reason for a walk,
// which goes by descriptors.
func (t *frozenTree) fail(op, path string, err error) error {
	if err == nil {
		return nil
	}
	err = &fs.PathError{Op: op, Path: t.dir + "/" + path, Err: err}
	switch {
	case errors.Is(err, unix.ENAMETOOLONG):
		return &treediff.NoHintsError{Reason: "path-too-long", Err: err}
	case errors.Is(err, unix.ENOSYS):
		return &treediff.NoHintsError{Reason: "kernel", Err: err}
	}
	return err
}

// dirent is an entry of a directory.
type dirent struct {
	name string
	ino  uint64
	dir  bool
}

// list calls yield with the entries of a directory, except "." and "..", until yield returns false. A directory that
// does not exist has no entries. The layout of struct linux_dirent64 (d_ino, d_off, d_reclen, d_type, d_name) is from
// getdents(2); ZFS always fills in d_type. yield must not call list, which has one buffer for all.
func (t *frozenTree) list(path string, yield func(dirent) bool) error {
	fd, err := t.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if isAbsent(err) {
		return nil
	}
	if err != nil {
		return t.fail("open", path, err)
	}
	defer unix.Close(fd)
	for {
		n, err := eintr.Retry(func() (int, error) { return unix.ReadDirent(fd, t.buf) })
		if err != nil {
			return t.fail("read directory", path, err)
		}
		if n <= 0 {
			return nil
		}
		for b := t.buf[:n]; len(b) > 0; {
			size := binary.NativeEndian.Uint16(b[16:])
			name := b[19:size]
			name = name[:bytes.IndexByte(name, 0)]
			if string(name) != "." && string(name) != ".." {
				if !yield(dirent{name: string(name), ino: binary.NativeEndian.Uint64(b), dir: b[18] == unix.DT_DIR}) {
					return nil
				}
			}
			b = b[size:]
		}
	}
}

// joinPath is the path of a name in a directory.
func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
