package trees

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

// dir is an open directory of a tree.
type dir struct {
	file *os.File
	path string // in the tree
	// isContent tells the extended attributes that are a part of the content.
	isContent func(attribute string) bool
}

// root is the directory of a tree whose descriptor belongs to the caller. It has an offset of its own.
func root(f *os.File, isContent func(attribute string) bool) (*dir, error) {
	if f == nil {
		return nil, nil
	}
	return (&dir{file: f, isContent: isContent}).sub(".")
}

// sub opens a directory in d, or d itself anew.
func (d *dir) sub(name string) (*dir, error) {
	path := d.path
	if name != "." {
		path = join(path, name)
	}
	fd, err := eintr.Retry(func() (int, error) {
		return unix.Openat(int(d.file.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/" + path, Err: err}
	}
	return &dir{os.NewFile(uintptr(fd), path), path, d.isContent}, nil
}

func (d *dir) close() error {
	if d == nil {
		return nil
	}
	return d.file.Close()
}

// names lists the directory, sorted. A nil directory is empty.
func (d *dir) names() ([]string, error) {
	if d == nil {
		return nil, nil
	}
	names, err := d.file.Readdirnames(-1)
	slices.Sort(names)
	return names, d.wrap("list", "", err)
}

func (d *dir) wrap(operation, name string, err error) error {
	if err == nil {
		return nil
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return &fs.PathError{Op: operation, Path: "/" + join(d.path, name), Err: err}
}

// entry is a name in a directory.
type entry struct {
	dir  *dir
	name string
	st   unix.Stat_t
}

// entry looks at a name. It returns nil if there is none, or if d is nil.
func (d *dir) entry(name string) (*entry, error) {
	if d == nil {
		return nil, nil
	}
	e := &entry{dir: d, name: name}
	err := eintr.Ignore(func() error {
		return unix.Fstatat(int(d.file.Fd()), name, &e.st, unix.AT_SYMLINK_NOFOLLOW)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, d.wrap("stat", name, err)
	}
	return e, nil
}

// self is the directory itself as an entry.
func (d *dir) self() (*entry, error) { return d.entry(".") }

func (e *entry) kind() uint32  { return e.st.Mode & unix.S_IFMT }
func (e *entry) isDir() bool   { return e != nil && e.kind() == unix.S_IFDIR }
func (e *entry) path() string  { return join(e.dir.path, e.name) }
func (e *entry) inode() inode  { return inode{e.st.Dev, e.st.Ino} }
func (e *entry) isLink() bool  { return !e.isDir() && e.st.Nlink > 1 }
func (e *entry) isPlain() bool { return e.kind() == unix.S_IFREG }

// inode names an inode.
type inode struct{ dev, ino uint64 }

// proc is a path by which calls without a descriptor find the entry. Its last part is not followed by such calls.
func (e *entry) proc() string {
	return treeat.ProcPath(int(e.dir.file.Fd()), e.name)
}

// link is the target of a symbolic link.
func (e *entry) link() (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := eintr.Retry(func() (int, error) { return unix.Readlinkat(int(e.dir.file.Fd()), e.name, buf) })
	if err != nil {
		return "", e.dir.wrap("readlink", e.name, err)
	}
	return string(buf[:n]), nil
}

// attribute returns the value of an extended attribute; ok is false if there is none.
func (e *entry) attribute(name string) (value []byte, ok bool, err error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(e.proc(), name, buf)
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			return nil, false, nil
		case errors.Is(err, unix.ERANGE) && len(buf) < maxAttributes:
			buf = make([]byte, maxAttributes)
		case err != nil:
			return nil, false, e.dir.wrap("getxattr", e.name, err)
		default:
			return buf[:n], true, nil
		}
	}
}

// attributes returns the extended attributes that are a part of the content.
func (e *entry) attributes() (map[string]string, error) {
	buf := make([]byte, 1024)
	n, err := unix.Llistxattr(e.proc(), buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, maxAttributes)
		n, err = unix.Llistxattr(e.proc(), buf)
	}
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, e.dir.wrap("listxattr", e.name, err)
	}
	all := make(map[string]string)
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if !e.dir.isContent(name) {
			continue
		}
		value, ok, err := e.attribute(name)
		if err != nil {
			return nil, err
		}
		if ok {
			all[name] = string(value)
		}
	}
	return all, nil
}

// open opens a regular file.
func (e *entry) open() (*os.File, error) {
	fd, err := eintr.Retry(func() (int, error) {
		return unix.Openat(int(e.dir.file.Fd()), e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, e.dir.wrap("open", e.name, err)
	}
	return os.NewFile(uintptr(fd), e.path()), nil
}

// differs says in which of its properties a differs from b, "" if in none. It does not compare bytes, nor links.
func differs(a, b *entry) (string, error) {
	switch {
	case a.kind() != b.kind():
		return "type", nil
	case a.st.Mode != b.st.Mode:
		return "mode", nil
	case a.st.Uid != b.st.Uid || a.st.Gid != b.st.Gid:
		return "owner", nil
	case a.st.Mtim != b.st.Mtim:
		return "time", nil
	}
	switch a.kind() {
	case unix.S_IFREG:
		if a.st.Size != b.st.Size {
			return "size", nil
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if a.st.Rdev != b.st.Rdev {
			return "device", nil
		}
	case unix.S_IFLNK:
		x, err := a.link()
		if err != nil {
			return "", err
		}
		y, err := b.link()
		if err != nil {
			return "", err
		}
		if x != y {
			return "target", nil
		}
	}
	return differentAttribute(a, b)
}

func differentAttribute(a, b *entry) (string, error) {
	x, err := a.attributes()
	if err != nil {
		return "", err
	}
	y, err := b.attributes()
	if err != nil {
		return "", err
	}
	for name, value := range x {
		if other, ok := y[name]; !ok || other != value {
			return "attribute " + name, nil
		}
	}
	for name := range y {
		if _, ok := x[name]; !ok {
			return "attribute " + name, nil
		}
	}
	return "", nil
}

// sameBytes reports whether two regular files of one size have the same content.
func sameBytes(a, b *entry, bufs *[2][]byte) (same bool, err error) {
	if a.st.Size == 0 || a.inode() == b.inode() {
		return true, nil
	}
	x, err := a.open()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	y, err := b.open()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, y.Close()) }()
	for {
		n, errX := io.ReadFull(x, bufs[0])
		m, errY := io.ReadFull(y, bufs[1])
		if err := errors.Join(notEnd(errX), notEnd(errY)); err != nil {
			return false, err
		}
		if n != m || !bytes.Equal(bufs[0][:n], bufs[1][:m]) {
			return false, nil
		}
		if errX != nil {
			return true, nil
		}
	}
}

func notEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
