package snapshotter

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Remove removes a snapshot from the metadata. Its key can be used again at once; its volume is destroyed by Cleanup.
// It does not matter whether the volume is still there.
//
// Returns errdefs.ErrNotFound if there is no such snapshot, and errdefs.ErrFailedPrecondition if others were made
// from it.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	if err := s.awaitMade(ctx, key); err != nil {
		return wrap("remove snapshot", key, err)
	}
	var volume string
	removed := false
	err := s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if removed && errdefs.IsNotFound(err) {
			return nil // by the transaction before this one
		}
		if err != nil {
			return err
		}
		volume = info.Labels[VolumeLabel]
		if _, _, err := storage.Remove(ctx, key); err != nil {
			return err
		}
		removed = true
		if volume == "" {
			return nil
		}
		return errors.Join(making.del(tx, volume), doomed.put(tx, volume, ""))
	})
	if err != nil {
		return wrap("remove snapshot", key, err)
	}
	if volume != "" {
		s.doom(volume)
	}
	return nil
}

// doom has Cleanup destroy volumes. The metadata does not name them any more, and says that they are doomed.
func (s *Snapshotter) doom(volumes ...string) {
	if len(volumes) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doomed = append(s.doomed, volumes...)
	s.wakeRetry()
}

// removeVolume removes a volume that is doomed. Returns errdefs.ErrFailedPrecondition if it is in use, or if it had no name and
// may get that back or has got it since.
func (s *Snapshotter) removeVolume(ctx context.Context, volume string) error {
	if err := s.backend.Remove(ctx, volume); err != nil {
		return err
	}
	_, there, unfinished, err := s.lookAgain(ctx, volume)
	if err == nil && (there || unfinished) {
		err = fault.New(errdefs.ErrFailedPrecondition, "volume %s gets its name back when a rollback or a merge of it ends, or has got that since", volume)
	}
	return err
}

// destroy destroys a volume that is doomed, if it can be already.
func (s *Snapshotter) destroy(ctx context.Context, volume string) {
	if err := s.removeVolume(ctx, volume); err != nil {
		s.log.Warn("snapshotter: volume cannot be destroyed yet", "volume", volume, "error", err)
		s.noteReason(volume, err)
		s.doom(volume)
		return
	}
	s.noteDestroyed(volume)
}

// noteDestroyed notes that a volume is destroyed, which a power cut may undo: until that is settled it stays doomed.
func (s *Snapshotter) noteDestroyed(volume string) {
	s.measured.Delete(volume)
	s.forgetSpoiled(volume)
	if s.forgetReason(volume) {
		s.log.Info("snapshotter: volume of a removed snapshot is destroyed at last", "volume", volume)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsettled = append(s.unsettled, volume)
}

// settling calls create, which makes a volume. Making a volume commits the filesystem's earlier changes. So volumes
// destroyed before do not come back afterwards, and the metadata need not list them as doomed.
func (s *Snapshotter) settling(create func() error) error {
	s.mu.Lock()
	destroyed := s.unsettled
	s.unsettled = nil
	s.mu.Unlock()
	err := create()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.stale.destroyed = append(s.stale.destroyed, destroyed...)
	} else {
		s.unsettled = append(destroyed, s.unsettled...)
	}
	return err
}

// busyWith keeps Cleanup from taking a volume for destroyed that an operation is about to make, until end is called.
func (s *Snapshotter) busyWith(volume string) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy[volume] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.busy, volume)
	}
}

func (s *Snapshotter) isBusyWith(volume string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.busy[volume]
	return ok
}

// Cleanup destroys the volumes of removed snapshots. A volume that is still in use, such as a mounted one, is no error:
// a later Cleanup destroys it, see RetryCleanup. Cleanup also removes the snapshots of volumes that are gone, and forks
// that have expired: see Options.Layers.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	select {
	case s.cleaning <- struct{}{}: // another may be destroying volumes of which the caller expects that they are gone
		defer func() { <-s.cleaning }()
	case <-ctx.Done():
		return fault.Wrap("clean up snapshots", "", typed(context.Cause(ctx)))
	}
	s.mu.Lock()
	doomed := s.doomed
	s.doomed = nil
	s.mu.Unlock()

	if len(doomed) > 0 {
		s.endSteps(ctx) // after which a volume has its name again
	}
	left, errs := s.destroyAll(ctx, doomed)
	errs = append(errs, s.sweep(ctx))
	s.doom(left...)
	s.reserve.keep()
	if err := errors.Join(errs...); err != nil {
		return fault.Wrap("clean up snapshots", "", typed(err))
	}
	return nil
}

// destroyAll destroys volumes and returns those that are left: those in use, for which there is no error, and those
// that could not be destroyed.
func (s *Snapshotter) destroyAll(ctx context.Context, doomed []string) (left []string, errs []error) {
	for i, volume := range doomed {
		if ctx.Err() != nil {
			return append(left, doomed[i:]...), append(errs, context.Cause(ctx))
		}
		if s.isBusyWith(volume) {
			left = append(left, volume)
			continue
		}
		err := s.removeVolume(ctx, volume)
		if err == nil {
			s.noteDestroyed(volume)
			continue
		}
		left = append(left, volume)
		isNew := s.noteReason(volume, err)
		switch {
		case !errdefs.IsFailedPrecondition(err):
			errs = append(errs, err)
		case isNew:
			s.log.Info("snapshotter: volume of a removed snapshot is in use, and is destroyed later", "volume", volume, "error", err)
		}
	}
	return left, errs
}
