package rootuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/internal/overlaysource"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Mounts returns fault.ErrInUse if one of the named directories of the root is in use by a mount:
//
//   - It is mounted in any mount namespace, or a directory below it is.
//   - It is a layer of a mounted overlay.
//   - Another filesystem is mounted below it.
//
// Names that do not exist are ignored.
func Mounts(root *rootdir.Dir, names []string) error {
	if err := Mountpoints(root, names...); err != nil {
		return err
	}
	finder := NewFinder(root)
	for _, name := range names {
		uses, err := finder.Uses(name)
		if err != nil {
			return err
		}
		if err := mounttable.InUse(root.Join(name), uses); err != nil {
			return err
		}
	}
	return nil
}

// Mountpoints returns fault.ErrInUse if something is mounted below the named directories of the root, in the own mount
// namespace. It would be taken for their content.
func Mountpoints(root *rootdir.Dir, names ...string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root.Path()))
	if err != nil {
		return err
	}
	for _, name := range names {
		for _, mount := range mounts {
			if strings.HasPrefix(mount.Mountpoint, root.Join(name)+"/") {
				return fault.New(fault.ErrInUse, "%s is mounted on %s: unmount it there", mount.Source, mount.Mountpoint)
			}
		}
	}
	return nil
}

// Finder finds the mounts that use directories of a root. It may look at the mounts of other filesystems only once.
type Finder struct {
	root        *rootdir.Dir
	filesystems map[uint64]*mounttable.Filesystem // by device
}

// NewFinder returns a Finder for one check of a root.
func NewFinder(root *rootdir.Dir) *Finder {
	return &Finder{root: root, filesystems: map[uint64]*mounttable.Filesystem{}}
}

// Uses lists the mounts of a directory of the root, of those below it, and of overlays that have it as a layer. It looks at
// all mount namespaces. There are none if the directory does not exist.
func (f *Finder) Uses(name string) ([]mounttable.Use, error) {
	dir, err := f.root.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	filesystem, err := f.filesystem(dir)
	if err != nil {
		return nil, err
	}
	mount, below, err := MountOf(dir)
	if err != nil {
		return nil, err
	}
	uses, err := filesystem.UsesOf(filepath.Join(mount.Root, below), noVolume)
	return uses, fault.Wrap("find the mounts of", dir.Name(), err)
}

// noVolume tells of each overlay of Cowshed that it uses none of the directories: its volumes are in a home, and not in the
// root of another tool.
func noVolume(overlaysource.Source) bool { return false }

func (f *Finder) filesystem(dir *os.File) (*mounttable.Filesystem, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if known := f.filesystems[stat.Dev]; known != nil {
		return known, nil
	}
	found, err := mounttable.New(int(dir.Fd()))
	if err == nil {
		f.filesystems[stat.Dev] = found
	}
	return found, err
}

// MountOf finds the mount that an open directory is in, and the directory's path from the mount point.
func MountOf(dir *os.File) (mount *mountinfo.Info, below string, err error) {
	defer func() { err = fault.Wrap("find the mount of", dir.Name(), err) }()
	id, err := mountID(dir)
	if err != nil {
		return nil, "", err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.ID != id, m.ID == id })
	if err != nil {
		return nil, "", err
	}
	if len(mounts) == 0 {
		return nil, "", fault.New(errdefs.ErrNotFound, "mount %d cannot be seen from here", id)
	}
	path, err := os.Readlink(treeat.ProcPath(int(dir.Fd()), ""))
	if err != nil {
		return nil, "", err
	}
	if below, err = filepath.Rel(mounts[0].Mountpoint, path); err != nil {
		return nil, "", fmt.Errorf("path of %s: %w", dir.Name(), err)
	}
	return mounts[0], below, nil
}

// mountID is the ID of the mount that an open file is in.
func mountID(file *os.File) (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(file.Fd())))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fault.New(errdefs.ErrInternal, "the kernel does not tell the mount")
}
