package oldgraph

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/migrate/internal/removal"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
)

// lock keeps other calls of Into from the root as long as the directory is open.
func lock(dir *os.File) error {
	free, err := flock.TryExclusive(dir)
	if err == nil && !free {
		return fault.New(fault.ErrInUse, "another process moves its layers")
	}
	return err
}

// renameNames gives the file of names the driver's name, as each driver of Docker 0.7 had a file of its own.
func (m *mover) renameNames() error {
	const names = "repositories"
	file, err := m.root.OpenFile(names)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := cowcommon.CheckID(m.driver.String()); err != nil {
		return fault.Wrap("rename the file of names for driver", m.driver.String(), err)
	}
	dir, err := m.root.OpenDir(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	renamed := names + "-" + m.driver.String()
	err = unix.Renameat2(int(dir.Fd()), names, int(dir.Fd()), renamed, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		err = fault.As(errdefs.ErrAlreadyExists, err)
	}
	if err != nil {
		return fault.WrapWith("rename", m.root.Join(names), fault.To(renamed), err)
	}
	return m.passed("renamed names")
}

// fill gives the last layer of an entry its changes. isLinked: by a symbolic link.
func (m *mover) fill(e entry, dir, files *os.File) (isLinked bool, err error) {
	layer := e.layers[len(e.layers)-1]
	if m.options.Changes != nil {
		return m.relocate(dir, e.files, m.options.Changes(layer))
	}
	at, err := m.driver.Get(layer, "")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, m.driver.Put(layer)) }()
	if e.parent == "" && len(e.layers) == 1 {
		renamed, err := m.renameTree(dir, e.files, files, at)
		if renamed || err != nil {
			return false, err
		}
	}
	return false, m.merge(at, files)
}

// merge applies the changes to the tree at a path, and makes that durable.
func (m *mover) merge(at string, files *os.File) error {
	tree, err := os.OpenFile(at, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer tree.Close()
	if _, err := treecopy.Merge(m.ctx, tree, files, treecopy.AufsMarks, treecopy.Options{}); err != nil {
		return err
	}
	if err := m.passed("merged"); err != nil {
		return err
	}
	_, err = eintr.Retry(func() (struct{}, error) { return struct{}{}, unix.Syncfs(int(tree.Fd())) })
	return os.NewSyscallError("syncfs", err)
}

// relocate puts the directory of changes in the place where the driver keeps such, or a symbolic link to it.
func (m *mover) relocate(dir *os.File, files, place string) (isLinked bool, err error) {
	info, err := os.Lstat(place)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case info.Mode()&fs.ModeSymlink != 0: // of an earlier call
		if err := os.Remove(place); err != nil {
			return false, err
		}
	}
	err = unix.Renameat(int(dir.Fd()), files, unix.AT_FDCWD, place)
	if err == nil {
		return false, m.passed("renamed")
	}
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
		return false, fault.WrapWith("rename", path.Join(dir.Name(), files), fault.To(place), err)
	}
	if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) { // the empty one of Create
		return false, err
	}
	if err := os.Symlink(path.Join(dir.Name(), files), place); err != nil {
		return false, err
	}
	return true, m.passed("linked to")
}

// renameTree renames the directory of a base layer to the empty tree that the driver has made. It does nothing if there
// are marks of aufs among the files, or if the kernel does not rename between these places.
func (m *mover) renameTree(dir *os.File, name string, files *os.File, at string) (renamed bool, err error) {
	isPlain, err := isPlainDirectory(files, at)
	if !isPlain || err != nil {
		return false, err
	}
	c, err := readChanges(m.ctx, files)
	if err != nil || len(c.opaque) > 0 {
		return false, err
	}
	for _, change := range c.list {
		if change.Kind == archive.ChangeDelete {
			return false, nil
		}
	}
	for _, own := range c.own {
		if path.Dir(own) != "/" {
			return false, nil
		}
	}
	for i := range c.own {
		c.own[i] = path.Base(c.own[i])
	}
	if err := removal.Names(m.ctx, files, c.own...); err != nil {
		return false, err
	}
	switch err := unix.Renameat(int(dir.Fd()), name, unix.AT_FDCWD, at); {
	case err == nil:
		return true, m.passed("renamed")
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return false, nil
	default:
		return false, fault.WrapWith("rename", path.Join(dir.Name(), name), fault.To(at), err)
	}
}

// isPlainDirectory reports whether path is a directory on the filesystem of files, and no subvolume.
func isPlainDirectory(files *os.File, path string) (bool, error) {
	var from, to unix.Stat_t
	if err := unix.Fstat(int(files.Fd()), &from); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	if err := unix.Lstat(path, &to); err != nil {
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	return from.Dev == to.Dev && to.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// discard removes the old files of an entry, unless they are mounted, and then its state.
func (m *mover) discard(e entry, dir *os.File) error {
	err := rootuse.Mounts(m.root, []string{e.dir() + "/" + e.files})
	if errors.Is(err, fault.ErrInUse) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := removal.Names(m.ctx, dir, e.files); err != nil {
		return err
	}
	if err := m.passed("discarded"); err != nil {
		return err
	}
	return m.states.set(e.in, e.id, untouched)
}
