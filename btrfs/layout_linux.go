package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/homedir"
)

// dirs are the directories of the layout, open for calls relative to them.
type dirs struct {
	subvolumes, staging, removing, views *os.File

	subvolumesID  uint64 // id of the subvolume that holds the directory subvolumes
	subvolumesIno uint64
}

// makeHome makes the directory home, as a subvolume of its own, unless it exists. So a snapshot of the filesystem
// around it neither copies nor pins layers.
func makeHome(home string, gid int) error {
	if _, err := os.Lstat(home); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := homedir.MakeAbove(home); err != nil {
		return err
	}
	dir, err := os.OpenFile(filepath.Dir(home), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = btrfsctl.CreateSubvolume(int(dir.Fd()), filepath.Base(home), nil)
	if err != nil && !errors.Is(err, unix.EEXIST) { // another process was quicker
		return fmt.Errorf("create subvolume: %w", err)
	}
	return homedir.SetAccess(home, gid)
}

// open opens the directories, and makes missing directories unless readOnly is set. With readOnly, only the directory
// subvolumes has to exist.
func (d *dirs) open(home string, gid int, readOnly bool) error {
	for name, dir := range map[string]**os.File{
		subvolumesName: &d.subvolumes,
		stagingName:    &d.staging,
		removingName:   &d.removing,
		viewsName:      &d.views,
	} {
		path := filepath.Join(home, name)
		if !readOnly {
			if err := homedir.Make(path, gid); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if readOnly && name != subvolumesName && errors.Is(err, fs.ErrNotExist) {
			continue // as in a home that only moby's driver has opened
		}
		if err != nil {
			return err
		}
		*dir = f
	}
	info, err := btrfsctl.Info(int(d.subvolumes.Fd()))
	if errors.Is(err, unix.ENOTTY) {
		return stubError(d.subvolumes)
	}
	if err != nil {
		return fmt.Errorf("subvolume of %s: %w", d.subvolumes.Name(), err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(d.subvolumes.Fd()), &stat); err != nil {
		return err
	}
	d.subvolumesID, d.subvolumesIno = info.ID, stat.Ino
	return nil
}

func (d *dirs) close() error {
	var errs []error
	for _, dir := range []*os.File{d.subvolumes, d.staging, d.removing, d.views} {
		if dir != nil {
			errs = append(errs, dir.Close())
		}
	}
	return errors.Join(errs...)
}

// recover destroys the remains of a crash in staging, removing and views. Only Cowshed puts subvolumes there; it leaves
// other files alone and reports them. It also reports remains that it cannot destroy. They disturb nobody, and the next
// start tries again.
func (b *Backend) recover(context.Context) error {
	for _, dir := range []*os.File{b.dirs.staging, b.dirs.removing, b.dirs.views} {
		// The directory is read through a descriptor of its own, whose position nobody else moves.
		entries, err := os.ReadDir(dir.Name())
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if dir == b.dirs.removing && isQgroupMark(entry) {
				continue
			}
			err := b.destroy(dir, entry.Name())
			if errors.Is(err, errStub) { // the stand-in for a temporary subvolume, in a snapshot of the home
				err = unix.Unlinkat(int(dir.Fd()), entry.Name(), unix.AT_REMOVEDIR)
			}
			if err != nil {
				b.log.Warn("btrfs: remains of a layer cannot be deleted, and stay until the next start", "path", filepath.Join(dir.Name(), entry.Name()), "error", err)
			}
		}
	}
	if err := b.recoverDoomed(); err != nil {
		b.log.Warn("btrfs: removed layers are left over", "error", err)
	}
	b.sweepQgroups()
	return nil
}

// recoverDoomed destroys the volumes whose removal has not ended. Some are renamed away. Others are marked as doomed,
// if the sticky bit says that there may be any.
func (b *Backend) recoverDoomed() error {
	marked, err := b.mayBeDoomed()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(b.dirs.subvolumes.Name())
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), removedPrefix) || marked && b.isDoomed(entry.Name()) {
			errs = append(errs, b.destroy(b.dirs.subvolumes, entry.Name()))
		}
	}
	if err := errors.Join(errs...); err != nil || !marked {
		return err
	}
	return b.setSticky(false)
}

func (b *Backend) isDoomed(name string) bool {
	dir, err := b.openVolume(name)
	if err != nil {
		return errors.Is(err, errDoomed)
	}
	dir.Close()
	return false
}
