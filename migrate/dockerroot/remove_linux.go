package dockerroot

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Remove implements migrate.Source. It removes the directory of the driver, then that of its images. So a removal that was
// interrupted can be repeated: as long as there is something to remove, Open finds the driver. Directories of containers
// stay.
func (s *Source) Remove(ctx context.Context) (err error) {
	defer func() { err = fault.Wrap("remove graph driver "+s.driver+" from", s.root.Path(), err) }()
	if err := s.InUse(ctx); err != nil {
		return err
	}
	if err := s.keeper.remove(ctx); err != nil {
		return err
	}
	// Open looks for the layerdb, so it goes last.
	names, err := s.root.List(s.image, maxEntries)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range slices.DeleteFunc(names, func(name string) bool { return name == "layerdb" }) {
		if err := removeName(ctx, s.root, s.image, name); err != nil {
			return err
		}
	}
	if err := syncDir(s.root, s.image); err != nil {
		return err
	}
	return removeTree(ctx, s.root, s.image, false)
}

// removeTree removes a directory and all in it, subvolumes of btrfs as well if there are any in it. The directory may be
// missing. It stays if it is a mount point.
func removeTree(ctx context.Context, root *rootdir.Dir, name string, subvolumes bool) error {
	if subvolumes {
		if err := removeSubvolumes(ctx, root, path.Join(name, "subvolumes")); err != nil {
			return err
		}
	}
	names, err := root.List(name, maxEntries)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, below := range names {
		if err := removeName(ctx, root, name, below); err != nil {
			return err
		}
	}
	// It must be gone for good before the layerdb goes, which may be on another filesystem.
	if err := syncDir(root, name); err != nil {
		return err
	}
	return removeDir(root, name)
}

// removeName removes a name of a directory, and all that is below it. No symbolic link is followed.
func removeName(ctx context.Context, root *rootdir.Dir, dir, name string) error {
	at, err := root.OpenDir(dir)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault.Wrap("remove from", at.Name(), treeat.RemoveTree(ctx, int(at.Fd()), name))
}

// removeDir removes an empty directory. It stays if it is a mount point.
func removeDir(root *rootdir.Dir, name string) error {
	at, err := root.OpenDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer at.Close()
	err = eintr.Ignore(func() error { return unix.Unlinkat(int(at.Fd()), path.Base(name), unix.AT_REMOVEDIR) })
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fault.Wrap("remove directory", root.Join(name), err)
}

// syncDir makes the changes of a directory's filesystem durable.
func syncDir(root *rootdir.Dir, name string) error {
	dir, err := root.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return fault.Wrap("sync", dir.Name(), unix.Syncfs(int(dir.Fd())))
}
