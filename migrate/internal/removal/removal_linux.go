package removal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Names removes the named files and directories in a directory, with all that is below them. Missing ones are no error.
func Names(ctx context.Context, dir *os.File, names ...string) error {
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := treeat.RemoveTree(ctx, int(dir.Fd()), name); err != nil {
			return fault.Wrap("remove", filepath.Join(dir.Name(), name), err)
		}
	}
	return nil
}

// In is Names for the directory dir of a root.
func In(ctx context.Context, root *rootdir.Dir, dir string, names ...string) error {
	at, err := root.OpenDir(dir)
	if err != nil {
		return err
	}
	defer at.Close()
	return Names(ctx, at, names...)
}

// maxNames is the most names of a directory that Tree removes.
const maxNames = 1 << 18

// Tree removes a directory and all in it, and makes that durable. The directory may be missing. It stays, empty, if it is a
// mount point.
func Tree(ctx context.Context, root *rootdir.Dir, name string) error {
	names, err := root.List(name, maxNames)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := In(ctx, root, name, names...); err != nil {
		return err
	}
	// The next directory to go may be on another filesystem.
	if err := Sync(root, name); err != nil {
		return err
	}
	return removeDir(root, name)
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

// Sync makes the changes of a directory's filesystem durable.
func Sync(root *rootdir.Dir, name string) error {
	dir, err := root.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return fault.Wrap("sync", dir.Name(), unix.Syncfs(int(dir.Fd())))
}
