package containersstorage

import (
	"context"

	"github.com/moby/sys/mountinfo"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/migrate/internal/removal"
	"github.com/cowshed/cowshed/migrate/internal/subvolume"
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
		err = subvolume.DestroyIn(ctx, s.root, "btrfs/subvolumes")
	case "zfs":
		err = s.destroyDatasets(ctx)
	}
	if err != nil {
		return err
	}
	return removal.In(ctx, s.root, ".", s.driver, s.driver+"-containers", s.driver+"-images", s.driver+"-layers")
}

// unmountDriver unmounts the directory of the overlay driver, which containers/storage mounts on itself.
func (s *Source) unmountDriver() error {
	path := s.root.Join(s.driver)
	for {
		mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
		if err != nil || len(mounts) == 0 {
			return err
		}
		if err := mountdir.Unmount(path); err != nil {
			return fault.Wrap("unmount", path, err)
		}
	}
}
