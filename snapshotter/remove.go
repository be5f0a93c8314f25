package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Remove removes a snapshot from the metadata. Its key can be used again at once; its volume is destroyed by
// Cleanup. It does not matter whether the volume is still there.
//
// errdefs.ErrNotFound: there is no such snapshot. errdefs.ErrFailedPrecondition: others were made from it.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var volume string
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		volume = info.Labels[VolumeLabel]
		_, _, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return wrap("remove", key, err)
	}
	if volume != "" {
		s.doom(volume)
	}
	return nil
}

// doom notes that a volume, which the metadata does not name, is to be destroyed.
func (s *Snapshotter) doom(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doomed = append(s.doomed, volume)
}

// doomAndDestroy destroys a volume that the metadata does not name, if it can be already.
func (s *Snapshotter) doomAndDestroy(ctx context.Context, volume string) {
	if err := s.backend.Remove(ctx, volume); err != nil {
		s.log.Warn("snapshotter: volume cannot be destroyed yet", "volume", volume, "error", err)
		s.doom(volume)
	}
}

// Cleanup destroys the volumes of snapshots that were removed. One that is still in use, mounted for example,
// is no error: it is left for the next Cleanup.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	s.mu.Lock()
	doomed := s.doomed
	s.doomed = nil
	s.mu.Unlock()

	// Whatever was cloned from a volume may have to be destroyed before it, and may be doomed after it.
	left, errs := s.destroyAll(ctx, doomed)
	for len(left) > 0 && len(left) < len(doomed) && len(errs) == 0 {
		doomed = left
		left, errs = s.destroyAll(ctx, doomed)
	}
	s.mu.Lock()
	s.doomed = slices.Concat(left, s.doomed)
	s.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("snapshotter: clean up: %w", err)
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
		err := s.backend.Remove(ctx, volume)
		if err == nil {
			s.measured.Delete(volume)
			continue
		}
		left = append(left, volume)
		if errdefs.IsFailedPrecondition(err) {
			s.log.Info("snapshotter: volume of a removed snapshot is in use, and is destroyed later", "volume", volume, "error", err)
			continue
		}
		errs = append(errs, err)
	}
	return left, errs
}
