package sharedroot

import (
	"context"

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
	unlock, err := k.b.lock(ctx, append(k.b.wants(k.lower), exclusive(k.volume))...)
	if err != nil {
		return err
	}
	defer unlock()
	k.b.unmountLeft(k.volume)
	if err := k.b.restoreLimit(ctx, k.volume); err != nil { // of the present state, not of the restored one
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
	return k.Kept.Restore(ctx)
}
