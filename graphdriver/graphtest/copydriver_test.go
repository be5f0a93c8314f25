//go:build linux

package graphtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
)

// copyDriver is the plainest driver there can be: a layer is a directory, a child a copy. It shows that the
// suite can be passed without a filesystem's help, and that NaiveDiffDriver keeps the contracts.
type copyDriver struct {
	root  string
	idMap user.IdentityMapping
	mu    sync.Mutex // held while layers come and go
}

func newCopyDriver(root string, idMap user.IdentityMapping) (graphdriver.Driver, error) {
	d := &copyDriver{root: root, idMap: idMap}
	for _, dir := range []string{d.layers(), d.scratch()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return graphdriver.NewNaiveDiffDriver(d, idMap), nil
}

func (d *copyDriver) layers() string        { return filepath.Join(d.root, "layers") }
func (d *copyDriver) scratch() string       { return filepath.Join(d.root, "scratch") }
func (d *copyDriver) dir(id string) string  { return filepath.Join(d.layers(), id) }
func (d *copyDriver) String() string        { return "copy" }
func (d *copyDriver) Status() [][2]string   { return [][2]string{{"Root", d.root}} }
func (d *copyDriver) Cleanup() error        { return nil }
func (d *copyDriver) Exists(id string) bool { return d.check(id) == nil }

// check says whether there is such a layer.
func (d *copyDriver) check(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	if _, err := os.Lstat(d.dir(id)); err != nil {
		return fmt.Errorf("layer %q: %w", id, errors.Join(errdefs.ErrNotFound, err))
	}
	return nil
}

func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 255 || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("layer id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (d *copyDriver) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return d.Create(id, parent, opts)
}

func (d *copyDriver) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	if err := checkID(id); err != nil {
		return err
	}
	if opts != nil && len(opts.StorageOpt) > 0 {
		return fmt.Errorf("no storage option is supported: %w", errdefs.ErrInvalidArgument)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.check(id) == nil {
		return fmt.Errorf("layer %q: %w", id, errdefs.ErrAlreadyExists)
	}
	if parent != "" {
		if err := d.check(parent); err != nil {
			return err
		}
	}

	staging, err := os.MkdirTemp(d.scratch(), "create")
	if err != nil {
		return err
	}
	err = d.fill(staging, parent)
	if err == nil {
		err = os.Rename(staging, d.dir(id))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(staging))
	}
	return nil
}

func (d *copyDriver) fill(dir, parent string) error {
	if parent != "" {
		return copyTree(d.dir(parent), dir, d.scratch())
	}
	uid, gid := d.idMap.RootPair()
	return errors.Join(os.Chown(dir, uid, gid), os.Chmod(dir, 0o755))
}

func (d *copyDriver) Remove(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.check(id) != nil {
		return nil
	}
	gone := filepath.Join(d.scratch(), "removing")
	return errors.Join(os.Rename(d.dir(id), gone), os.RemoveAll(gone))
}

func (d *copyDriver) Get(id, _ string) (string, error) { return d.dir(id), d.check(id) }
func (d *copyDriver) Put(id string) error              { return checkID(id) }

func (d *copyDriver) GetMetadata(id string) (map[string]string, error) {
	return map[string]string{"Dir": d.dir(id)}, d.check(id)
}

// copyTree makes the directory dst equal to src. Hard links are kept by way of names in scratch.
func copyTree(src, dst, scratch string) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	links, err := os.MkdirTemp(scratch, "links")
	if err != nil {
		return err
	}
	return errors.Join(copyDir(from, to, links), os.RemoveAll(links))
}

func copyDir(from, to *os.File, links string) error {
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyName(from, to, name, links); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return copyAttributes(procPath(from, "."), procPath(to, "."))
}

func copyName(from, to *os.File, name, links string) error {
	src, dst := procPath(from, name), procPath(to, name)
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(dst, 0o700); err != nil {
			return err
		}
		return copySubdir(src, dst, links)
	}

	link := filepath.Join(links, strconv.FormatUint(st.Ino, 10))
	if st.Nlink > 1 {
		if err := os.Link(link, dst); err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = copyData(src, dst)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(src); err == nil {
			err = os.Symlink(target, dst)
		}
	default:
		err = unix.Mknod(dst, st.Mode, int(st.Rdev))
	}
	if err == nil {
		err = copyAttributes(src, dst)
	}
	if err == nil && st.Nlink > 1 {
		err = os.Link(dst, link)
	}
	return err
}

func copySubdir(src, dst, links string) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	return copyDir(from, to, links)
}

// copyData copies a file and its holes.
func copyData(src, dst string) (err error) {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.Create(dst)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(info.Size()); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := from.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = from.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, start), io.NewSectionReader(from, start, end-start)); err != nil {
			return err
		}
	}
}

// copyAttributes copies owner, mode, extended attributes and time.
func copyAttributes(src, dst string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return err
	}
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
			return err
		}
	}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(src, names)
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(src, name, value)
		if err == nil {
			err = unix.Lsetxattr(dst, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
