package snapshotter

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Commit makes an active snapshot a committed one. Its volume is sealed, and is durable when Commit returns. If it is
// still mounted somewhere, the committed snapshot is a clone of it at this moment. Later writes through the mount do
// not reach the clone. While a layer is applied to it, Commit waits.
//
// The label containerd.io/snapshot/max-size has no effect. Returns errdefs.ErrNotImplemented if snapshots.WithParent
// names another parent than the snapshot was prepared on: a volume cannot be put on another.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return wrap("commit snapshot", key, s.commit(ctx, name, key, opts))
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) error {
	r, err := s.parseRequest(name, opts)
	if err != nil {
		return err
	}
	if err := s.awaitMade(ctx, key); err != nil {
		return err
	}
	active, release, err := s.claimActive(ctx, name, key, r.info.Parent)
	if err != nil {
		return err
	}
	defer release()
	if err := s.checkWhole(active.volume); err != nil {
		return err
	}
	copied := newVolumeName(snapshotPrefix, name) // if it has to be a copy
	defer s.busyWith(copied)()
	sealed, usage, err := s.seal(ctx, key, active.volume, copied)
	if err == nil {
		err = s.recordCommit(ctx, name, key, active.volume, sealed, usage, r.info.Labels)
	}
	if err != nil {
		return errors.Join(err, s.uncommit(context.WithoutCancel(ctx), key, active.volume, copied))
	}
	if sealed != active.volume {
		s.doom(active.volume)
	}
	return nil
}

// claimActive takes the volume of a snapshot that can be committed for the caller alone, until it calls release. An
// earlier holder, such as a commit that fails, may leave the snapshot another volume.
func (s *Snapshotter) claimActive(ctx context.Context, name, key, parent string) (active record, release func(), err error) {
	for {
		if active, err = s.checkCommit(ctx, name, key, parent); err != nil {
			return record{}, nil, err
		}
		if release, err = s.filling.Claim(ctx, active.volume); err != nil {
			return record{}, nil, err
		}
		now, err := s.checkCommit(ctx, name, key, parent)
		if err == nil && now.volume == active.volume {
			return now, release, nil
		}
		release()
		if err != nil {
			return record{}, nil, err
		}
	}
}

// checkCommit finds out, before anything is sealed, whether the snapshot can be committed.
func (s *Snapshotter) checkCommit(ctx context.Context, name, key, parent string) (active record, err error) {
	err = s.look(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		if active, err = lookup(ctx, key); err != nil {
			return err
		}
		if active.info.Kind != snapshots.KindActive {
			return fault.New(errdefs.ErrFailedPrecondition, "it is not active")
		}
		if parent != "" && parent != active.info.Parent {
			if active.info.Parent != "" {
				return fault.New(errdefs.ErrInvalidArgument, "its parent is %q and cannot become %q", active.info.Parent, parent)
			}
			return fault.New(errdefs.ErrNotImplemented, "it was prepared without a parent and cannot get one")
		}
		return checkAbsent(ctx, name)
	})
	return active, err
}

// seal seals the volume of a snapshot and measures it. It returns the volume that is sealed: the copy, if the volume is in
// use.
func (s *Snapshotter) seal(ctx context.Context, key, volume, copied string) (sealed string, usage snapshots.Usage, err error) {
	err = s.named(ctx, volume, func() error {
		if isInitKey(key) {
			return cowcommon.SealAsIs(ctx, s.backend, volume)
		}
		return cowcommon.Seal(ctx, s.backend, volume)
	})
	if err == nil {
		return volume, s.measureOnce(ctx, volume), nil
	}
	if !errdefs.IsFailedPrecondition(err) {
		return "", snapshots.Usage{}, err
	}
	if err := s.recordCopy(ctx, copied); err != nil {
		return "", snapshots.Usage{}, err
	}
	// Data that is not written back yet is not counted. Once the volume is cloned, it is not counted for the volume
	// alone.
	if err := s.backend.Sync(ctx, volume); err != nil {
		return "", snapshots.Usage{}, err
	}
	usage = s.measureOnce(ctx, volume)
	if err := s.backend.Clone(ctx, copied, volume, cowcommon.VolumeOptions{RootStyle: cowcommon.SnapshotRoot}); err != nil {
		return "", snapshots.Usage{}, err
	}
	v, err := s.backend.Stat(ctx, volume)
	if err != nil {
		return "", snapshots.Usage{}, err
	}
	if v.Sealed { // its user has ended in time for Clone to seal it
		return volume, usage, s.discardCopy(ctx, copied)
	}
	return copied, usage, cowcommon.Seal(ctx, s.backend, copied)
}

// recordCopy writes down that a volume is about to be made that no snapshot names yet.
func (s *Snapshotter) recordCopy(ctx context.Context, volume string) error {
	return s.change(ctx, func(_ context.Context, tx *bolt.Tx) error { return copies.put(tx, volume, "") })
}

// recordCommit makes the snapshot committed in the metadata, unless it has become another one meanwhile.
func (s *Snapshotter) recordCommit(ctx context.Context, name, key, volume, sealed string, usage snapshots.Usage, labels map[string]string) error {
	committed := false
	return s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		r, err := lookup(ctx, key)
		if committed && errdefs.IsNotFound(err) {
			if r, err := lookup(ctx, name); err == nil && r.volume == sealed {
				return nil // by the transaction before this one
			}
		}
		if err != nil {
			return err
		}
		if r.volume != volume {
			return fault.New(errdefs.ErrAborted, "it has been replaced")
		}
		_, err = storage.CommitActive(ctx, key, name, usage,
			snapshots.WithLabels(withVolume(labels, sealed)), snapshots.WithParent(r.info.Parent))
		if err != nil {
			return err
		}
		committed = true
		if sealed == volume {
			return making.del(tx, volume)
		}
		return errors.Join(copies.del(tx, sealed), making.del(tx, volume), doomed.put(tx, volume, ""))
	})
}

// uncommit leaves an active snapshot writable, and no copy of it, after its commit has failed.
func (s *Snapshotter) uncommit(ctx context.Context, key, volume, copied string) error {
	begun := false
	err := s.look(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		_, begun = copies.all(tx)[copied]
		return nil
	})
	if err == nil && begun {
		err = s.discardCopy(ctx, copied)
	}
	v, statErr := s.backend.Stat(ctx, volume)
	if errdefs.IsNotFound(statErr) || statErr == nil && !v.Sealed {
		return err
	}
	if statErr != nil {
		return errors.Join(err, statErr)
	}
	return errors.Join(err, s.thaw(ctx, key, v))
}

// discardCopy destroys a copy that no snapshot has come to name.
func (s *Snapshotter) discardCopy(ctx context.Context, copied string) error {
	err := s.change(ctx, func(_ context.Context, tx *bolt.Tx) error {
		return errors.Join(copies.del(tx, copied), doomed.put(tx, copied, ""))
	})
	if err == nil {
		s.destroy(ctx, copied)
	}
	return err
}
