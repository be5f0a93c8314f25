package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/inuse"
)

// Prepare makes an active snapshot. The label containerd.io/snapshot/max-size, a decimal number of bytes, sets its
// limit. Without the label, the limit is that of Options for the use that UseOf derives from the key. The label has
// no effect for UseUnpack. RootStyleLabel and InheritedRootStyleLabel name the root style, for which Options have a default
// too. The label AdoptLabel is about Offer.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindActive, key, parent, opts)
	return mounts, wrap("prepare snapshot", key, err)
}

// View makes a read-only snapshot. Nothing is cloned for it: its mounts are of the parent's volume, which is
// sealed. It has no limit.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.create(ctx, snapshots.KindView, key, parent, opts)
	return mounts, wrap("view snapshot", key, err)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	r, err := s.parseRequest(key, opts)
	if err != nil {
		return nil, err
	}
	end, err := s.beingMade.Claim(ctx, key)
	if err != nil {
		return nil, err
	}
	defer end()
	volume := volumeNameFor(kind, key, parent)
	made, err := s.recordCreate(ctx, kind, key, parent, volume, r.info.Labels)
	var mounts []mount.Mount
	if err == nil {
		mounts, err = s.fulfill(ctx, kind, key, made, r)
	}
	if err != nil {
		return nil, errors.Join(err, s.undoCreate(context.WithoutCancel(ctx), key, made))
	}
	return mounts, nil
}

// awaitMade waits while the snapshot of a key is being made, or undone since it could not be. Until then it is written
// down and not whole, and no client may rely on it.
func (s *Snapshotter) awaitMade(ctx context.Context, key string) error {
	none := func() (struct{}, error) { return struct{}{}, nil }
	if _, err := s.beingMade.Acquire(ctx, key, inuse.Brief, none); err != nil {
		return err
	}
	return s.beingMade.Release(key, inuse.Brief, func(struct{}) error { return nil })
}

// volumeNameFor names the volume of a new snapshot, "" if it has none.
func volumeNameFor(kind snapshots.Kind, key, parent string) string {
	switch {
	case kind == snapshots.KindActive:
		return newVolumeName(snapshotPrefix, key)
	case parent == "":
		return newVolumeName(emptyViewPrefix, key)
	}
	return ""
}

// recordCreate writes down the snapshot, before its volume is there: should this process end, it is known whose the
// volume is. After an error the record has the id that the snapshot has if it was written down all the same.
func (s *Snapshotter) recordCreate(ctx context.Context, kind snapshots.Kind, key, parent, volume string, labels map[string]string) (record, error) {
	made := record{volume: volume}
	err := s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if isMade, err := isRecord(ctx, key, made); isMade || err != nil {
			return err // the transaction before this one was written
		}
		if err := checkAbsent(ctx, key); err != nil {
			return err
		}
		if parent != "" {
			r, err := parentRecord(ctx, parent)
			if err != nil {
				return err
			}
			made.parentVolume = r.volume
		}
		created, err := storage.CreateSnapshot(ctx, kind, key, parent, snapshots.WithLabels(withVolume(labels, volume)))
		if err != nil {
			return err
		}
		made.id = created.ID
		if volume == "" {
			return nil
		}
		return making.put(tx, volume, "")
	})
	return made, err
}

// isRecord reports whether a key is still that of a record. ctx carries a transaction.
func isRecord(ctx context.Context, key string, made record) (bool, error) {
	r, err := lookup(ctx, key)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil && r.id == made.id && r.volume == made.volume, err
}

// fulfill makes the volume of a snapshot that is written down, and returns its mounts.
func (s *Snapshotter) fulfill(ctx context.Context, kind snapshots.Kind, key string, made record, r request) ([]mount.Mount, error) {
	if made.volume != "" {
		if err := s.createVolume(ctx, kind, key, made, r); err != nil {
			return nil, err
		}
	}
	if err := s.checkIDMapping(ctx, made.tree(), r.ids); err != nil {
		return nil, err
	}
	mounts, err := s.mounts(ctx, kind, made.tree(), r.ids)
	if err == nil && made.volume != "" {
		s.noteMade(made.volume)
	}
	return mounts, err
}

func (s *Snapshotter) createVolume(ctx context.Context, kind snapshots.Kind, key string, made record, r request) error {
	var opts cowcommon.VolumeOptions
	if kind == snapshots.KindActive {
		opts.Limit = s.limitOf(r, key)
	}
	style := s.styleOf(key, r.style, r.ids)
	return s.settling(func() error {
		switch {
		case r.adopt && kind == snapshots.KindActive:
			return s.adopt(ctx, key, made, opts)
		case made.parentVolume == "":
			return s.backend.Create(ctx, made.volume, opts)
		}
		return s.clone(ctx, made.volume, made.parentVolume, style, opts)
	})
}

// noteMade notes that the volume of a snapshot is there, which the metadata need not doubt any more.
func (s *Snapshotter) noteMade(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale.made = append(s.stale.made, volume)
}

// undoCreate removes the record that create has written, if any, and destroys the volume that it has made.
func (s *Snapshotter) undoCreate(ctx context.Context, key string, made record) error {
	if made.id == "" {
		return nil
	}
	undone := false
	err := s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if isMade, err := isRecord(ctx, key, made); !isMade || err != nil {
			return err // it was never written, or is another client's by now
		}
		if _, _, err := storage.Remove(ctx, key); err != nil {
			return err
		}
		undone = true
		if made.volume == "" {
			return nil
		}
		return errors.Join(making.del(tx, made.volume), doomed.put(tx, made.volume, ""))
	})
	if err != nil {
		return fmt.Errorf("undo it: %w", err)
	}
	if undone && made.volume != "" {
		s.destroy(ctx, made.volume)
	}
	return nil
}

// checkIDMapping finds out whether the kernel can mount the volume with mapped ids, by trying. Returns
// errdefs.ErrNotImplemented if it cannot.
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
		return fault.New(errdefs.ErrNotImplemented, "mount with mapped ids: %w", err)
	}
	return err
}
