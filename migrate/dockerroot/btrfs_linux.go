package dockerroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// isSubvolume reports whether an open directory is the root of a subvolume of btrfs.
func isSubvolume(dir *os.File) bool {
	var stat unix.Stat_t
	var filesystem unix.Statfs_t
	fd := int(dir.Fd())
	return unix.Fstat(fd, &stat) == nil && stat.Ino == btrfsctl.FirstFreeObjectID &&
		eintr.Ignore(func() error { return unix.Fstatfs(fd, &filesystem) }) == nil && filesystem.Type == unix.BTRFS_SUPER_MAGIC
}

// removeSubvolumes removes the subvolumes in a directory. Other names in it stay.
func removeSubvolumes(ctx context.Context, root *rootdir.Dir, name string) error {
	names, err := root.List(name, maxEntries)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := root.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, below := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		subvolume, err := root.OpenDir(path.Join(name, below))
		if err != nil {
			continue // it is no directory, and goes with the other names
		}
		if isSubvolume(subvolume) {
			err = destroy(dir, below, subvolume)
		}
		subvolume.Close()
		if err != nil {
			return fault.Wrap("destroy subvolume", root.Join(name, below), err)
		}
	}
	return nil
}

// destroy destroys a subvolume, with those nested in it at any depth.
func destroy(dir *os.File, name string, subvolume *os.File) error {
	err := btrfsctl.DestroySubvolume(int(dir.Fd()), name)
	if errors.Is(err, unix.ENOTEMPTY) {
		if err := destroyNested(int(subvolume.Fd())); err != nil {
			return err
		}
		err = btrfsctl.DestroySubvolume(int(dir.Fd()), name)
	}
	if errors.Is(err, unix.EPERM) && unprotect(int(subvolume.Fd())) == nil {
		err = btrfsctl.DestroySubvolume(int(dir.Fd()), name)
	}
	return err
}

// destroyNested destroys all subvolumes nested in the subvolume that is open as fd. A container may have nested them at any
// depth, so it finds them by their IDs.
func destroyNested(fd int) error {
	info, err := btrfsctl.Info(fd)
	if err != nil {
		return err
	}
	ids := []uint64{info.ID} // each before those nested in it
	for i := 0; i < len(ids); i++ {
		nested, err := nestedIn(fd, ids[i])
		if err != nil {
			return fmt.Errorf("subvolume %d: %w", ids[i], err)
		}
		for _, ref := range nested {
			ids = append(ids, ref.ID)
		}
	}
	for i := len(ids) - 1; i > 0; i-- {
		if err := destroyByID(fd, ids[i]); err != nil {
			return fmt.Errorf("subvolume %d: %w", ids[i], err)
		}
	}
	return nil
}

// nestedIn makes a subvolume of the filesystem of fd writable, and lists those that are nested in it.
func nestedIn(fd int, id uint64) ([]btrfsctl.RootRef, error) {
	root, err := btrfsctl.OpenRoot(fd, id)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	if err := unprotect(root); err != nil {
		return nil, err
	}
	return btrfsctl.Nested(root)
}

// destroyByID destroys a subvolume of the filesystem of fd, which has none nested in it.
func destroyByID(fd int, id uint64) error {
	link, err := btrfsctl.LinkByID(fd, id)
	if err != nil {
		return err
	}
	dir, err := btrfsctl.OpenDir(fd, link.ParentID, link.DirID)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = btrfsctl.DestroySubvolume(dir, link.Name)
	if errors.Is(err, unix.EPERM) && btrfsctl.AllowUnlink(dir) == nil {
		err = btrfsctl.DestroySubvolume(dir, link.Name)
	}
	return err
}

// unprotect makes a subvolume writable, and lets its names be removed.
func unprotect(fd int) error {
	return errors.Join(btrfsctl.SetReadOnly(fd, false), btrfsctl.AllowUnlink(fd))
}
