package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
)

// thaw gives an active snapshot whose volume has been sealed a writable clone of it, with the same limit. The clone has the
// root style of a new snapshot. A snapshot that has been committed, removed or thawed by another meanwhile stays as it is.
//
// The metadata names the clone and its source before the clone exists: should this process end meanwhile, the next
// start finds either the clone or the volume to clone.
func (s *Snapshotter) thaw(ctx context.Context, key string, sealed cowcommon.Volume) error {
	return s.thawTo(ctx, key, sealed, s.endThaw)
}

// thawTo is thaw with a function that is called when the clone exists.
func (s *Snapshotter) thawTo(ctx context.Context, key string, sealed cowcommon.Volume, end func(ctx context.Context, sealed, clone string) error) error {
	clone := newVolumeName(snapshotPrefix, key)
	defer s.busyWith(clone)()
	began, style, err := s.beginThaw(ctx, key, sealed.Name, clone)
	if !began || err != nil {
		return err
	}
	if err := s.clone(ctx, clone, sealed.Name, style, cowcommon.VolumeOptions{Limit: sealed.Limit}); err != nil {
		s.setFrozen(key, true)
		return errors.Join(fmt.Errorf("make it writable again: %w", err), s.undoThaw(ctx, key, sealed.Name, clone))
	}
	s.setFrozen(key, false)
	return end(ctx, sealed.Name, clone)
}

// thawFrozen thaws an active snapshot for which that has failed before.
func (s *Snapshotter) thawFrozen(ctx context.Context, key, volume string) error {
	v, err := s.backend.Stat(ctx, volume)
	if err != nil {
		return err
	}
	if !v.Sealed {
		s.setFrozen(key, false)
		return nil
	}
	return s.thaw(ctx, key, v)
}

func (s *Snapshotter) beginThaw(ctx context.Context, key, sealed, clone string) (began bool, style rootStyle, err error) {
	err = s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		began = false
		r, err := lookup(ctx, key)
		if errdefs.IsNotFound(err) || err == nil && r.info.Kind != snapshots.KindActive {
			return nil
		}
		if err != nil {
			return err
		}
		if r.volume != sealed && r.volume != clone {
			return nil
		}
		if style, err = s.styleOfExisting(r.info); err != nil {
			return err
		}
		began = true
		return errors.Join(renameVolume(ctx, key, clone), thawing.put(tx, clone, sealed))
	})
	return began, style, err
}

// undoThaw has the snapshot name its sealed volume again.
func (s *Snapshotter) undoThaw(ctx context.Context, key, sealed, clone string) error {
	removed := false // by another client
	err := s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		r, err := lookup(ctx, key)
		switch removed = errdefs.IsNotFound(err) || err == nil && r.volume != clone && r.volume != sealed; {
		case removed:
			err = doomed.put(tx, sealed, "")
		case err == nil:
			err = renameVolume(ctx, key, sealed)
		}
		return errors.Join(err, thawing.del(tx, clone), doomed.put(tx, clone, ""))
	})
	if err != nil {
		return err
	}
	if removed {
		s.doom(sealed)
	}
	s.destroy(ctx, clone)
	return nil
}

// endThaw gives up the sealed volume, of which the snapshot has a clone.
func (s *Snapshotter) endThaw(ctx context.Context, sealed, clone string) error {
	err := s.change(ctx, func(_ context.Context, tx *bolt.Tx) error {
		return errors.Join(thawing.del(tx, clone), doomed.put(tx, sealed, ""))
	})
	if err == nil {
		s.warnOfMoments(ctx, sealed)
		s.doom(sealed)
	}
	return err
}

// endThawKeeping gives up the sealed volume without destroying it.
func (s *Snapshotter) endThawKeeping(ctx context.Context, _, clone string) error {
	return s.change(ctx, func(_ context.Context, tx *bolt.Tx) error { return thawing.del(tx, clone) })
}

// renameVolume has a snapshot name another volume. ctx carries a transaction.
func renameVolume(ctx context.Context, key, volume string) error {
	info := snapshots.Info{Name: key, Labels: withVolume(nil, volume)}
	_, err := storage.UpdateInfo(ctx, info, "labels."+VolumeLabel)
	return err
}

// setFrozen notes whether the volume of an active snapshot is sealed, since it could not be made writable again.
func (s *Snapshotter) setFrozen(key string, frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if frozen {
		s.frozen[key] = struct{}{}
	} else {
		delete(s.frozen, key)
	}
}

func (s *Snapshotter) isFrozen(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.frozen[key]
	return ok
}
