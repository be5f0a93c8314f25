// Package bindmount shows the tree of a layer at other places, by bind mounts, and finds these again.
package bindmount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/mounttable"
)

// Bind mounts the directory dir on the directory target, privately. With readOnly nothing can be changed through
// target. Other restrictions of dir's mount, such as nosuid, nodev and noexec, hold for target too.
func Bind(dir, target string, readOnly bool) error {
	if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount %s on %s: %w", dir, target, err)
	}
	err := unix.Mount("", target, "", unix.MS_PRIVATE, "")
	if err == nil && readOnly {
		err = setReadOnly(target)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("bind mount %s on %s: %w", dir, target, err), Unmount(target))
	}
	return nil
}

// setReadOnly makes the mount on target read-only and leaves its other flags as they are.
func setReadOnly(target string) error {
	err := unix.MountSetattr(unix.AT_FDCWD, target, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.12
		return remountReadOnly(target)
	}
	return err
}

// remountReadOnly is setReadOnly by mount(2), which clears those flags that it is not given, apart from
// those about access times.
func remountReadOnly(target string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); err != nil {
		return err
	}
	kept := uintptr(fs.Flags) & (unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC) // the same bits as MS_*
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|kept, "")
}

// Unmount unmounts target. Returns errdefs.ErrFailedPrecondition if it is in use, and errdefs.ErrNotFound if nothing
// is mounted there.
func Unmount(target string) error {
	err := mountdir.Unmount(target)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		err = fault.New(fault.ErrInUse, "fuser -vm %s shows by whom: %w", target, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		err = fault.New(errdefs.ErrNotFound, "it is not a mount point: %w", err)
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}

// Targets lists where in this mount namespace the directory dir is mounted: mount points outside of home,
// the driver's own directory, whose root is dir. fsType is the type of the filesystem that layers are on. A layer with
// a shared root is an overlay.
func Targets(dir, home, fsType string) ([]string, error) {
	var own unix.Stat_t
	if err := unix.Stat(dir, &own); err != nil {
		return nil, fmt.Errorf("stat %s: %w", dir, err)
	}
	mounts, err := mountinfo.GetMounts(ofLayers(home, fsType))
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, m := range mounts {
		var stat unix.Stat_t
		if unix.Stat(m.Mountpoint, &stat) == nil && stat.Dev == own.Dev && stat.Ino == own.Ino {
			targets = append(targets, m.Mountpoint)
		}
	}
	return targets, nil
}

// Named returns the name that the layer mounted on target seems to have: that of its subvolume or dataset, or the source of
// its overlay. Returns
// errdefs.ErrNotFound if the mount there cannot be a layer, or if there is no mount.
func Named(target, home, fsType string) (string, error) {
	target, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	if resolved, err := filepath.EvalSymlinks(target); err == nil {
		target = resolved
	}
	mounts, err := mountinfo.GetMounts(ofLayers(home, fsType))
	if err != nil {
		return "", err
	}
	name := ""
	for _, m := range mounts {
		if m.Mountpoint != target {
			continue
		}
		if name = filepath.Base(m.Root); m.Root == "/" { // a dataset of its own, or an overlay
			name = filepath.Base(m.Source)
		}
	}
	if name == "" {
		return "", fault.New(errdefs.ErrNotFound, "no layer is mounted on %s", target)
	}
	return name, nil
}

// ofLayers passes mounts of the type of filesystem that layers are on, and overlays of directories in home, at places
// outside of home. Others are not even looked at: a network filesystem might not answer.
func ofLayers(home, fsType string) mountinfo.FilterFunc {
	return func(m *mountinfo.Info) (skip, stop bool) {
		ofLayer := m.FSType == fsType || m.FSType == "overlay" && isOverlayOf(home, m)
		return !ofLayer || isWithin(home, m.Mountpoint), false
	}
}

// isOverlayOf reports whether an overlay consists of directories in home alone.
func isOverlayOf(home string, m *mountinfo.Info) bool {
	layers := mounttable.LayersOf(m.VFSOptions)
	for _, layer := range layers {
		if !isWithin(home, layer) {
			return false
		}
	}
	return len(layers) > 0
}

func isWithin(home, path string) bool { return path == home || strings.HasPrefix(path, home+"/") }

// mostHolders is how many processes Holders names.
const mostHolders = 5

// Holders names the other processes that have files of the layer mounted on target open, run them or work in its directories. It
// names a few, and counts the rest. It finds none if nothing is mounted there any more.
func Holders(target string) (names []string) {
	var st unix.Stat_t
	if unix.Stat(target, &st) != nil {
		return nil
	}
	pids := mounttable.Holders(mounttable.File{Device: uint64(st.Dev)}) //nolint:unconvert // narrower on some platforms
	pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() })
	for _, pid := range pids[:min(len(pids), mostHolders)] {
		names = append(names, mounttable.DescribeProcess(pid))
	}
	if more := len(pids) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d others", more))
	}
	return names
}
