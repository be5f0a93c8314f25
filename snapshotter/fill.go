package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
)

// filling is an active snapshot's volume while a layer is applied to it. Until it ends, the snapshot is not committed,
// no other layer is applied to it, and Cleanup destroys neither the volume nor its parent.
type filling struct {
	s      *Snapshotter
	volume cowcommon.Volume
	// untouched says that the volume is as Prepare has made it, so that a new one can take its place.
	untouched bool
	release   func()
}

// fill begins to fill a volume. errdefs.ErrFailedPrecondition: it cannot be written to.
func (s *Snapshotter) fill(ctx context.Context, volume string) (_ *filling, err error) {
	release, err := s.filling.Claim(ctx, volume)
	if err != nil {
		return nil, err
	}
	endBusy := s.busyWith(volume)
	f := &filling{s: s, release: func() { endBusy(); release() }}
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	if err := s.checkWhole(volume); err != nil {
		return nil, err
	}
	if f.volume, err = s.backend.Stat(ctx, volume); err != nil {
		return nil, err
	}
	if f.volume.Sealed {
		return nil, fmt.Errorf("its volume is sealed: %w", errdefs.ErrFailedPrecondition)
	}
	if parent := f.volume.Parent; parent != "" {
		endParent, endVolume := s.busyWith(parent), f.release
		f.release = func() { endParent(); endVolume() }
	}
	f.untouched, err = s.isUntouched(ctx, f.volume)
	return f, err
}

// end ends it. After an error it takes back what there is of the layer, if it can be.
func (f *filling) end(ctx context.Context, err error) error {
	defer f.release()
	if err == nil || !f.untouched {
		return err
	}
	if undone := f.s.remake(context.WithoutCancel(ctx), f.volume); undone != nil {
		err = errors.Join(err, fmt.Errorf("take back what was applied: %w", undone))
	}
	return err
}

// isUntouched reports whether a volume is as Prepare has made it. false: perhaps not.
func (s *Snapshotter) isUntouched(ctx context.Context, v cowcommon.Volume) (bool, error) {
	if v.Parent != "" {
		teller, ok := s.backend.(cowcommon.ChangeTeller)
		if !ok {
			return false, nil
		}
		return teller.Unchanged(ctx, v.Name)
	}
	dir, err := s.backend.Mount(ctx, v.Name, "")
	if err != nil {
		return false, err
	}
	untouched, err := isNew(dir)
	return untouched, errors.Join(err, s.backend.Unmount(context.WithoutCancel(ctx), v.Name))
}

// remake puts a new volume in the place of one that was untouched.
//
// The metadata says before that the volume may not be there: should this process end meanwhile, the next start takes the
// snapshot for one of a Prepare that was cut off, and removes it. A snapshot that was removed meanwhile gets no volume.
func (s *Snapshotter) remake(ctx context.Context, v cowcommon.Volume) error {
	removed := false
	err := s.change(ctx, func(_ context.Context, tx *bolt.Tx) error {
		if _, removed = doomed.all(tx)[v.Name]; removed {
			return nil
		}
		return making.put(tx, v.Name, "")
	})
	if err == nil && !removed {
		err = s.backend.Remove(ctx, v.Name)
	}
	if err != nil {
		s.spoil(v.Name)
		return err
	}
	if removed {
		s.destroy(ctx, v.Name)
		return nil
	}
	err = s.settling(func() error {
		opts := cowcommon.VolumeOptions{Limit: v.Limit}
		if v.Parent == "" {
			return s.backend.Create(ctx, v.Name, opts)
		}
		return s.backend.Clone(ctx, v.Name, v.Parent, opts)
	})
	if err == nil {
		s.noteMade(v.Name)
	}
	return err
}

// spoil notes that a volume holds a part of a layer that could not be taken back. Its snapshot can only be removed.
func (s *Snapshotter) spoil(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoiled[volume] = struct{}{}
}

// checkWhole reports whether a volume holds whole layers only. errdefs.ErrFailedPrecondition: it does not.
func (s *Snapshotter) checkWhole(volume string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.spoiled[volume]; ok {
		return fmt.Errorf("it holds a part of a layer that could not be taken back, remove it: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
