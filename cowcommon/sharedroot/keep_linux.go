package sharedroot

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// kept is the former state of a volume, and the lower that it had, "" if its root was not shared.
type kept struct {
	cowcommon.Kept
	b             *Backend
	volume, lower string
}

// Keep notes the state of a volume, and its root style with it.
func (b *Backend) Keep(ctx context.Context, name string) (_ cowcommon.Kept, err error) {
	k := &kept{b: b, volume: name}
	err = b.untilFolded(ctx, name, func() error { return k.take(ctx) })
	if err != nil {
		return nil, fault.Wrap("keep volume", name, err)
	}
	return k, nil
}

func (k *kept) take(ctx context.Context) error {
	unlock, err := k.b.lock(ctx, shared(k.volume))
	if err != nil {
		return err
	}
	defer unlock()
	s, lower, err := k.b.look(ctx, k.volume)
	if err == nil && s == stateFolding {
		err = errFolding
	}
	if err != nil {
		return err
	}
	if err := k.b.restoreLimit(ctx, k.volume); err != nil { // the limit is a part of the state
		return err
	}
	k.lower = lower
	k.Kept, err = cowcommon.Keep(ctx, k.b.Backend, k.volume)
	return err
}

// Restore gives the volume its former content, and its former root style. Returns errdefs.ErrFailedPrecondition if the
// volume was shared, and its lower has been removed meanwhile.
func (k *kept) Restore(ctx context.Context) error {
	return fault.Wrap("restore volume", k.volume, k.restore(ctx))
}

func (k *kept) restore(ctx context.Context) error {
	return untilSteady(ctx, func() error {
		present, err := k.b.index.lower(k.volume)
		if err != nil {
			return err
		}
		return k.restoreLocked(ctx, present)
	})
}

// restoreLocked restores a volume whose note said present, before the locks for that were taken.
func (k *kept) restoreLocked(ctx context.Context, present string) error {
	unlock, err := k.b.lock(ctx, append(append(k.b.wants(k.lower), k.b.wants(present)...), exclusive(k.volume))...)
	if err != nil {
		return err
	}
	defer unlock()
	switch noted, err := k.b.index.lower(k.volume); {
	case err != nil:
		return err
	case noted != present:
		return errStyleChanged
	}
	k.b.unmountLeft(k.volume)
	switch err := k.b.restoreLimit(ctx, k.volume); { // of the present state, not of the restored one
	case errdefs.IsFailedPrecondition(err):
		warnOfLimit(k.b.log, k.volume, err)
	case err != nil:
		return err
	}
	if k.lower != "" {
		_, err := k.b.Backend.Stat(ctx, k.lower)
		if errdefs.IsNotFound(err) {
			return fault.New(errdefs.ErrFailedPrecondition, "volume %s, which its root shared, is gone", k.lower)
		}
		if err == nil {
			err = k.b.index.add(k.volume, k.lower)
		}
		if err != nil {
			return err
		}
	}
	err = k.Kept.Restore(ctx)
	switch {
	case errdefs.IsFailedPrecondition(err), errdefs.IsNotFound(err): // nothing has changed
		return errors.Join(err, k.b.setNote(k.volume, present))
	case err != nil: // it may have the former state
		return err
	}
	if k.lower == "" {
		k.b.tryForget(k.volume, k.volume)
	}
	return k.b.forgetLimit(k.volume) // it would replace the limit of the restored state
}

// setNote notes the lower of a volume, or removes the note for "".
func (b *Backend) setNote(name, lower string) error {
	if lower == "" {
		return b.index.forget(name)
	}
	return b.index.add(name, lower)
}
