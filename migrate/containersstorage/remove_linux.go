package containersstorage

import (
	"context"
	"errors"
	"io/fs"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/treeat"
)

// Remove implements migrate.Source. It removes the four directories of the driver. The records of layers go last, so
// that Open finds the rest after a crash. Podman's own database, its volumes, networks and secrets stay.
func (s *Source) Remove(ctx context.Context) error {
	return fault.Wrap("remove the root", s.root.Path(), s.remove(ctx))
}

func (s *Source) remove(ctx context.Context) (err error) {
	if err := s.inUse(ctx); err != nil {
		return err
	}
	switch s.driver {
	case "overlay":
		err = s.unmountDriver()
	case "btrfs":
		err = s.destroySubvolumes(ctx)
	case "zfs":
		err = s.destroyDatasets(ctx)
	}
	if err != nil {
		return err
	}
	root, err := s.root.OpenDir(".")
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range []string{s.driver, s.driver + "-containers", s.driver + "-images", s.driver + "-layers"} {
		if err := treeat.RemoveTree(ctx, int(root.Fd()), name); err != nil {
			return fault.Wrap("remove", name, err)
		}
	}
	return nil
}

// unmountDriver unmounts the directory of the overlay driver, which containers/storage mounts on itself.
func (s *Source) unmountDriver() error {
	path := s.root.Join(s.driver)
	for {
		mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
		if err != nil || len(mounts) == 0 {
			return err
		}
		if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
			return fault.Wrap("unmount", path, err)
		}
	}
}

// destroySubvolumes destroys the layers of btrfs, but none that has subvolumes in it. The caller removes the rest by
// files.
func (s *Source) destroySubvolumes(ctx context.Context) error {
	names, err := s.root.List("btrfs/subvolumes", maxRecordCount)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := s.root.OpenDir("btrfs/subvolumes")
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := btrfsctl.DestroySubvolume(int(dir.Fd()), name)
		if err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENOTTY) {
			return fault.Wrap("destroy subvolume", name, err)
		}
	}
	return nil
}
