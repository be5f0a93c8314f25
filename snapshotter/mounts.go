package snapshotter

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Mount options that the snapshotter adds.
const (
	uidMapOption = "uidmap=" // containerd's
	gidMapOption = "gidmap="
	readOnly     = "ro"
	readWrite    = "rw"
)

// Mounts returns the mounts of an active snapshot, which can be written to, or of a view, which cannot.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := s.mountsOf(ctx, key)
	return mounts, wrap("mount snapshot", key, err)
}

func (s *Snapshotter) mountsOf(ctx context.Context, key string) ([]mount.Mount, error) {
	r, err := s.read(ctx, key)
	if err != nil {
		return nil, err
	}
	if r.info.Kind == snapshots.KindCommitted {
		return nil, fault.New(errdefs.ErrFailedPrecondition, "it is committed")
	}
	ids, err := parseIDMapping(r.info.Labels)
	if err != nil {
		return nil, err
	}
	if s.isFrozen(key) {
		if err := s.thawFrozen(ctx, key, r.volume); err != nil {
			return nil, err
		}
		if r, err = s.read(ctx, key); err != nil {
			return nil, err
		}
	}
	return s.mounts(ctx, r.info.Kind, r.tree(), ids)
}

func (s *Snapshotter) mounts(ctx context.Context, kind snapshots.Kind, volume string, ids idMapping) ([]mount.Mount, error) {
	view := kind == snapshots.KindView
	m, err := s.mountSpec(ctx, volume, view)
	if err != nil {
		return nil, err
	}
	access := readWrite
	if view {
		access = readOnly
	}
	m.Options = slices.Concat(m.Options, []string{access}, ids.mountOptions())
	return []mount.Mount{m}, nil
}

// mountSpec is a mount of a volume without its access mode.
func (s *Snapshotter) mountSpec(ctx context.Context, volume string, readOnly bool) (mount.Mount, error) {
	var spec cowcommon.MountSpec
	err := s.named(ctx, volume, func() (err error) {
		spec, err = s.mounter.MountSpec(ctx, volume, readOnly)
		return err
	})
	return mount.Mount{Type: spec.Type, Source: spec.Source, Options: spec.Options}, err
}

// mounted is the result of resolving mounts.
type mounted struct {
	volume   string // "" if the tree is empty
	readOnly bool
}

// resolve finds the volume of mounts, in whichever way they were passed on and with whichever access mode. No mounts
// stand for an empty tree. Returns errdefs.ErrNotImplemented if they are not of a volume of this snapshotter.
func (s *Snapshotter) resolve(ctx context.Context, mounts []mount.Mount) (mounted, error) {
	if len(mounts) == 0 {
		return mounted{readOnly: true}, nil
	}
	if len(mounts) > 1 || mounts[0].Target != "" {
		return mounted{}, fault.New(errdefs.ErrNotImplemented, "not a plain mount of one snapshot")
	}
	m := mounts[0]
	volume := candidate(m)
	if !IsVolumeName(volume) {
		return mounted{}, unknownMount(m)
	}
	same, err := s.isMountOf(ctx, m, volume)
	switch {
	case err != nil && !errdefs.IsNotFound(err):
		return mounted{}, err
	case !same:
		return mounted{}, unknownMount(m)
	case strings.HasPrefix(volume, emptyViewPrefix):
		return mounted{readOnly: true}, nil
	}
	return mounted{volume: volume, readOnly: m.ReadOnly()}, nil
}

// isMountOf reports whether m is one of the mounts that a volume can have.
func (s *Snapshotter) isMountOf(ctx context.Context, m mount.Mount, volume string) (bool, error) {
	for _, readOnly := range []bool{false, true} {
		spec, err := s.mountSpec(ctx, volume, readOnly)
		if err != nil || identity(spec) == identity(m) {
			return err == nil, err
		}
	}
	return false, nil
}

func unknownMount(m mount.Mount) error {
	return fault.New(errdefs.ErrNotImplemented, "%s mount of %q is not of a snapshot of this snapshotter", m.Type, m.Source)
}

// candidate is the only volume that m can be a mount of.
func candidate(m mount.Mount) string {
	source := m.Source
	for _, option := range m.Options {
		if subvolume, ok := strings.CutPrefix(option, "subvol="); ok {
			source = subvolume
		}
	}
	name, _, _ := strings.Cut(path.Base(source), "@")
	return name
}

// objectOptions name the object of a mount: a subvolume, or the directories of an overlay.
var objectOptions = []string{"subvol", "subvolid", "lowerdir", "upperdir", "workdir"}

// identity names the object of a mount: all of the mount except its access mode.
func identity(m mount.Mount) string {
	parts := []string{m.Type, m.Source}
	for _, option := range m.Options {
		if name, _, _ := strings.Cut(option, "="); slices.Contains(objectOptions, name) {
			parts = append(parts, option)
		}
	}
	return strings.Join(parts, "\x00")
}
