package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
)

// Prepare makes an active snapshot. Its limit is that of the label containerd.io/snapshot/max-size, a decimal
// number of bytes, else Options.DefaultLimit.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindActive, key, parent, opts)
	return mounts, wrap("prepare", key, err)
}

// View makes a read-only snapshot. Nothing is cloned for it: its mounts are of the parent's volume, which is
// sealed. It has no limit.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindView, key, parent, opts)
	return mounts, wrap("view", key, err)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	r, err := s.parseRequest(key, opts)
	if err != nil {
		return nil, err
	}
	parentVolume, err := s.checkCreate(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	volume := volumeNameFor(kind, parent)
	defer func() {
		if err != nil && volume != "" {
			s.doomAndDestroy(context.WithoutCancel(ctx), volume)
		}
	}()
	if volume != "" {
		if err := s.createVolume(ctx, kind, key, volume, parentVolume, r); err != nil {
			return nil, err
		}
	}
	tree := volume
	if tree == "" {
		tree = parentVolume
	}
	if err := s.checkIDMapping(ctx, tree, r.ids); err != nil {
		return nil, err
	}
	mounts, err := s.mounts(ctx, kind, tree, r.ids)
	if err != nil {
		return nil, err
	}
	return mounts, s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		if err := checkParentVolume(ctx, parent, parentVolume); err != nil {
			return err
		}
		_, err := storage.CreateSnapshot(ctx, kind, key, parent, snapshots.WithLabels(withVolume(r.info.Labels, volume)))
		return err
	})
}

// checkCreate finds out, before anything is made, whether the snapshot can be, and what its parent's volume is.
func (s *Snapshotter) checkCreate(ctx context.Context, key, parent string) (parentVolume string, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		if err := checkAbsent(ctx, key); err != nil || parent == "" {
			return err
		}
		r, err := parentRecord(ctx, parent)
		parentVolume = r.volume
		return err
	})
	return parentVolume, err
}

// volumeNameFor names the volume of a new snapshot, "" if it has none.
func volumeNameFor(kind snapshots.Kind, parent string) string {
	switch {
	case kind == snapshots.KindActive:
		return newVolumeName(snapshotPrefix)
	case parent == "":
		return newVolumeName(emptyViewPrefix)
	}
	return ""
}

func (s *Snapshotter) createVolume(ctx context.Context, kind snapshots.Kind, key, volume, parentVolume string, r request) error {
	var opts cowcommon.VolumeOptions
	if kind == snapshots.KindActive {
		opts.Limit = s.limitOf(r, key)
	}
	if parentVolume == "" {
		return s.backend.Create(ctx, volume, opts)
	}
	return s.backend.Clone(ctx, volume, parentVolume, opts)
}

// checkParentVolume makes sure that a parent still is what was cloned: it may have been removed, and its name
// given to another. ctx carries a transaction.
func checkParentVolume(ctx context.Context, parent, volume string) error {
	if parent == "" {
		return nil
	}
	r, err := parentRecord(ctx, parent)
	if err == nil && r.volume != volume {
		err = fmt.Errorf("parent %q has been replaced: %w", parent, errdefs.ErrAborted)
	}
	return err
}

// checkIDMapping finds out whether the kernel can mount the volume with mapped ids, by trying.
// errdefs.ErrNotImplemented: it cannot.
func (s *Snapshotter) checkIDMapping(ctx context.Context, volume string, ids idMapping) (err error) {
	if ids == (idMapping{}) {
		return nil
	}
	dir, err := s.backend.Mount(ctx, volume, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.backend.Unmount(context.WithoutCancel(ctx), volume)) }()
	err = detect.IDMappedMounts(dir)
	if errors.Is(err, graphdriver.ErrNotSupported) {
		return fmt.Errorf("mount with mapped ids: %w: %w", errdefs.ErrNotImplemented, err)
	}
	return err
}
