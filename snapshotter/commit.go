package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
)

// Commit makes an active snapshot a committed one. Its volume is sealed, and is durable when Commit returns. If
// it is still mounted somewhere, the committed snapshot is a clone of it, as it is at this moment, which what is
// written later through the mount does not reach.
//
// The label containerd.io/snapshot/max-size has no effect. snapshots.WithParent with another parent than the
// snapshot was prepared on is errdefs.ErrNotImplemented: a volume cannot be put on another.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return wrap("commit", key, s.commit(ctx, name, key, opts))
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, opts []snapshots.Opt) error {
	r, err := s.parseRequest(name, opts)
	if err != nil {
		return err
	}
	active, err := s.checkCommit(ctx, name, key, r.info.Parent)
	if err != nil {
		return err
	}
	sealed, usage, err := s.seal(ctx, active.volume)
	if err == nil {
		err = s.recordCommit(ctx, name, key, active.volume, sealed, usage, r.info.Labels)
	}
	if err != nil {
		return errors.Join(err, s.unseal(context.WithoutCancel(ctx), key, active.volume, sealed))
	}
	if sealed != active.volume {
		s.doom(active.volume)
	}
	return nil
}

// checkCommit finds out, before anything is sealed, whether the snapshot can be committed.
func (s *Snapshotter) checkCommit(ctx context.Context, name, key, parent string) (active record, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		if active, err = lookup(ctx, key); err != nil {
			return err
		}
		if active.info.Kind != snapshots.KindActive {
			return fmt.Errorf("it is not active: %w", errdefs.ErrFailedPrecondition)
		}
		if parent != "" && parent != active.info.Parent {
			if active.info.Parent != "" {
				return fmt.Errorf("its parent is %q and cannot become %q: %w", active.info.Parent, parent, errdefs.ErrInvalidArgument)
			}
			return fmt.Errorf("it was prepared without a parent and cannot get one: %w", errdefs.ErrNotImplemented)
		}
		return checkAbsent(ctx, name)
	})
	return active, err
}

// seal seals a volume and measures it. It returns the volume that is sealed: a clone, if the volume is in use.
func (s *Snapshotter) seal(ctx context.Context, volume string) (sealed string, usage snapshots.Usage, err error) {
	err = s.backend.Seal(ctx, volume)
	if err == nil {
		return volume, s.measureOnce(ctx, volume), nil
	}
	if !errdefs.IsFailedPrecondition(err) {
		return volume, snapshots.Usage{}, err
	}
	// What is not written back yet is not counted, and no longer counted for the volume alone once it is cloned.
	if err := s.backend.Sync(ctx, volume); err != nil {
		return volume, snapshots.Usage{}, err
	}
	usage = s.measureOnce(ctx, volume)
	clone := newVolumeName(snapshotPrefix)
	err = s.backend.Clone(ctx, clone, volume, cowcommon.VolumeOptions{})
	if err == nil {
		err = s.backend.Seal(ctx, clone)
	}
	if err != nil {
		s.doom(clone) // in case that it is there all the same
		return volume, snapshots.Usage{}, err
	}
	return clone, usage, nil
}

// recordCommit makes the snapshot committed in the metadata, unless it has become another one meanwhile.
func (s *Snapshotter) recordCommit(ctx context.Context, name, key, volume, sealed string, usage snapshots.Usage, labels map[string]string) error {
	return s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		r, err := lookup(ctx, key)
		if err != nil {
			return err
		}
		if r.volume != volume {
			return fmt.Errorf("it has been replaced: %w", errdefs.ErrAborted)
		}
		_, err = storage.CommitActive(ctx, key, name, usage,
			snapshots.WithLabels(withVolume(labels, sealed)), snapshots.WithParent(r.info.Parent))
		return err
	})
}

// unseal undoes seal, after the commit has failed.
func (s *Snapshotter) unseal(ctx context.Context, key, volume, sealed string) error {
	if sealed != volume {
		s.doom(sealed)
		return nil
	}
	v, err := s.backend.Stat(ctx, volume)
	if errdefs.IsNotFound(err) || err == nil && !v.Sealed {
		return nil
	}
	if err != nil {
		return err
	}
	return s.thaw(ctx, key, v)
}

// thaw gives an active snapshot whose volume has been sealed a writable clone of it, with the same limit.
func (s *Snapshotter) thaw(ctx context.Context, key string, sealed cowcommon.Volume) error {
	clone := newVolumeName(snapshotPrefix)
	if err := s.backend.Clone(ctx, clone, sealed.Name, cowcommon.VolumeOptions{Limit: sealed.Limit}); err != nil {
		s.doom(clone)
		return fmt.Errorf("make it writable again: %w", err)
	}
	taken := false
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		r, err := lookup(ctx, key)
		if errdefs.IsNotFound(err) || err == nil && (r.volume != sealed.Name || r.info.Kind != snapshots.KindActive) {
			return nil // it has been committed or removed by another
		}
		if err != nil {
			return err
		}
		info := snapshots.Info{Name: key, Labels: withVolume(nil, clone)}
		_, err = storage.UpdateInfo(ctx, info, "labels."+VolumeLabel)
		taken = err == nil
		return err
	})
	if err != nil || !taken {
		s.doom(clone)
		return err
	}
	s.doom(sealed.Name)
	return nil
}
