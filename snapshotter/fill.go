package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// filling is an active snapshot's volume while a layer is applied to it. Until it ends the snapshot is not committed, and
// no other layer is applied to it.
type filling struct {
	s       *Snapshotter
	volume  string
	before  cowcommon.Kept // the volume's former state; nil if that cannot be kept
	begun   bool           // a part of the layer may be there
	release func()
}

// fill begins to fill a volume. Returns errdefs.ErrFailedPrecondition if the volume cannot be written to.
func (s *Snapshotter) fill(ctx context.Context, volume string) (_ *filling, err error) {
	release, err := s.filling.Claim(ctx, volume)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if err := s.checkWhole(volume); err != nil {
		return nil, err
	}
	if err := s.partial.add(volume); err != nil {
		return nil, fmt.Errorf("note that a layer is applied: %w", err)
	}
	f := &filling{s: s, volume: volume, release: release}
	f.before, err = cowcommon.Keep(ctx, s.backend, volume)
	if errdefs.IsNotImplemented(err) {
		f.before, err = nil, nil
	}
	if err != nil {
		err = errors.Join(err, s.partial.forget(volume))
	}
	return f, err
}

// end ends it. Without an error, the caller has written out the volume: only then the mark may go. After an error it takes back the
// extracted part of the layer, if it can.
func (f *filling) end(ctx context.Context, err error) error {
	defer f.release()
	if err == nil {
		err = f.s.partial.forget(f.volume)
	}
	if err != nil {
		err = errors.Join(err, f.takeBack(ctx))
	}
	if f.before == nil {
		return err
	}
	if err := f.before.Close(); err != nil {
		f.s.log.Warn("snapshotter: the former state of a volume cannot be deleted, and the next start tries again", "volume", f.volume, "error", err)
	}
	return err
}

// takeBack gives the volume its former content. A volume that cannot be taken back cannot be committed.
func (f *filling) takeBack(ctx context.Context) (err error) {
	switch {
	case !f.begun:
	case f.before == nil:
		err = fault.New(errdefs.ErrFailedPrecondition, "its former state could not be kept")
	default:
		err = f.before.Restore(context.WithoutCancel(ctx)) // the request may have been cancelled
	}
	if err == nil || errdefs.IsNotFound(err) {
		return f.s.partial.forget(f.volume)
	}
	f.s.spoil(f.volume)
	return errors.Join(fmt.Errorf("take back the applied layer: %w", err), f.s.partial.add(f.volume))
}

// checkWhole returns errdefs.ErrFailedPrecondition unless a volume holds whole layers only.
func (s *Snapshotter) checkWhole(volume string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.spoiled[volume]; ok {
		return fault.New(errdefs.ErrFailedPrecondition, "it holds a part of a layer that could not be taken back: remove it")
	}
	return nil
}
