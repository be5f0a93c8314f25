package btrfs

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/cowshed/cowshed/cowcommon"
)

// MountSpec says how others can mount a volume: by the path of its subvolume from the top of the filesystem, with
// the device that the home is mounted from. Access times are kept as they are for the home.
func (b *Backend) MountSpec(_ context.Context, name string, _ bool) (cowcommon.MountSpec, error) {
	dir, err := b.openVolume(name)
	if err != nil {
		return cowcommon.MountSpec{}, fmt.Errorf("btrfs: how to mount: %w", err)
	}
	defer dir.Close()
	m, err := mountOf(b.home)
	if err != nil {
		return cowcommon.MountSpec{}, fmt.Errorf("btrfs: how to mount of %s: %w", name, err)
	}
	at, err := filepath.EvalSymlinks(dir.Name())
	if err != nil {
		return cowcommon.MountSpec{}, fmt.Errorf("btrfs: how to mount %s: %w", name, err)
	}
	rel, err := filepath.Rel(m.Mountpoint, at)
	if err != nil {
		return cowcommon.MountSpec{}, fmt.Errorf("btrfs: how to mount of %s: %w", name, err)
	}
	if strings.Contains(rel+m.Root, ",") {
		return cowcommon.MountSpec{}, fmt.Errorf("btrfs: how to mount %s: a path with a comma, %s, cannot be a mount option: %w", name, at, errdefs.ErrFailedPrecondition)
	}
	options := []string{"subvol=" + path.Join(m.Root, rel)}
	if slices.Contains(strings.Split(m.Options, ","), "noatime") {
		options = append(options, "noatime")
	}
	return cowcommon.MountSpec{Type: "btrfs", Source: m.Source, Options: options}, nil
}

// mountOf finds the mount that holds the directory dir.
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
	for _, m := range mounts { // of several on one mount point the last is on top
		if deepest == nil || len(m.Mountpoint) >= len(deepest.Mountpoint) {
			deepest = m
		}
	}
	if deepest == nil || deepest.FSType != "btrfs" {
		return nil, fmt.Errorf("the mount of %s is not in this mount namespace: %w", dir, errdefs.ErrFailedPrecondition)
	}
	return deepest, nil
}
