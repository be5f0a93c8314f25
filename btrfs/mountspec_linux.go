package btrfs

import (
	"context"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// MountSpec says how others can mount a volume: by the path of its subvolume from the top of the filesystem, and the
// device that the home is mounted from. It has the option noatime if the home is mounted with it.
func (b *Backend) MountSpec(_ context.Context, name string, _ bool) (spec cowcommon.MountSpec, err error) {
	err = b.withVolume("describe mount of", name, func(dir *subvolume) error {
		m, subvol, err := b.subvolPath(dir.Name())
		if err != nil {
			return err
		}
		spec = cowcommon.MountSpec{Type: "btrfs", Source: m.Source, Options: []string{"subvol=" + subvol}}
		if slices.Contains(strings.Split(m.Options, ","), "noatime") {
			spec.Options = append(spec.Options, "noatime")
		}
		return nil
	})
	return spec, err
}

// CheckMountSpec reports whether the mount and the path of this home allow a MountSpec of its volumes.
func (b *Backend) CheckMountSpec() error {
	_, _, err := b.subvolPath(b.dirs.subvolumes.Name())
	return fault.Wrap("describe mounts of volumes in", b.home, err)
}

// subvolPath returns the mount that holds the home, and the path of a file in the home from the top of the filesystem.
// Returns errdefs.ErrFailedPrecondition if that path cannot be a mount option, because it has a comma.
func (b *Backend) subvolPath(file string) (*mountinfo.Info, string, error) {
	m, err := mountOf(b.home)
	if err != nil {
		return nil, "", err
	}
	at, err := filepath.EvalSymlinks(file)
	if err != nil {
		return nil, "", err
	}
	rel, err := filepath.Rel(m.Mountpoint, at)
	if err != nil {
		return nil, "", err
	}
	subvol := path.Join(m.Root, rel)
	if strings.Contains(subvol, ",") {
		return nil, "", fault.New(errdefs.ErrFailedPrecondition, "its path in the filesystem, %s, has a comma and so cannot be a mount option: choose another root", subvol)
	}
	return m, subvol, nil
}

// mountOf finds the mount that holds the directory dir. Returns errdefs.ErrFailedPrecondition if this mount namespace
// has no such mount of btrfs.
func mountOf(dir string) (*mountinfo.Info, error) {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(resolved))
	if err != nil {
		return nil, err
	}
	var deepest *mountinfo.Info
	for _, m := range mounts { // of several mounts on one mount point the last is on top
		if deepest == nil || len(m.Mountpoint) >= len(deepest.Mountpoint) {
			deepest = m
		}
	}
	if deepest == nil || deepest.FSType != "btrfs" {
		return nil, fault.New(errdefs.ErrFailedPrecondition, "the mount of %s is not in this mount namespace", dir)
	}
	return deepest, nil
}
