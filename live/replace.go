package live

import (
	"context"
	"errors"
	"time"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/poll"
)

// replace gives a layer that nobody uses a new content, which starts as that of the moment source. prepare may be nil; it
// changes the volume that becomes the layer. The former content becomes the moment r, which the caller commits.
//
// With an Exchanger, the volume r.Volume is first the new content, and then exchanged for the layer. Otherwise the layer
// is renamed to it, and a volume beside it to the layer.
func (l *Layers) replace(ctx context.Context, r record, v cowcommon.Volume, source string, prepare func(volume string) error) (err error) {
	if v.Sealed {
		return fault.Wrap("replace layer", v.Name, fault.New(fault.ErrSealed, "other layers were made from it"))
	}
	if err := cowcommon.CheckWhole(ctx, l.backend, source); err != nil {
		return fault.Wrap("replace layer", v.Name, err)
	}
	r.Replaced = v.Created
	if err := l.save(pendingDir, r); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.endPending(context.WithoutCancel(ctx), r))
		}
	}()
	_, exchanges := cowcommon.As[cowcommon.Exchanger](l.backend)
	fresh := r.Volume
	if !exchanges {
		fresh += newSuffix
	}
	if err := l.backend.Clone(ctx, fresh, source, cowcommon.VolumeOptions{Limit: v.Limit}); err != nil {
		return err
	}
	if prepare != nil {
		if err := prepare(fresh); err != nil {
			return err
		}
	}
	if exchanges {
		if err := cowcommon.Exchange(ctx, l.backend, v.Name, r.Volume); err != nil {
			return err
		}
	} else {
		if err := cowcommon.Rename(ctx, l.backend, v.Name, r.Volume); err != nil {
			return err
		}
		if err := cowcommon.Rename(context.WithoutCancel(ctx), l.backend, fresh, v.Name); err != nil {
			return err
		}
	}
	return l.sealFormer(ctx, r.Volume)
}

// sealFormer seals the former volume of a layer. Somebody who was about to use the layer may have its former volume locked
// for a moment.
func (l *Layers) sealFormer(ctx context.Context, volume string) error {
	pauses := poll.Pauses{First: time.Millisecond, Longest: 50 * time.Millisecond, AtMost: 5 * time.Second}
	return poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		err = cowcommon.Seal(ctx, l.backend, volume)
		return errors.Is(err, fault.ErrInUse), err
	})
}

// endReplace ends an interrupted replacement. done says that the layer has its new content, or that nothing is left to
// undo.
func (l *Layers) endReplace(ctx context.Context, r record) (done bool, err error) {
	layer, hasLayer, err := l.exists(ctx, r.Layer)
	if err != nil {
		return false, err
	}
	_, hasFormer, err := l.exists(ctx, r.Volume)
	if err != nil {
		return false, err
	}
	_, exchanges := cowcommon.As[cowcommon.Exchanger](l.backend)
	fresh := r.Volume + newSuffix
	_, hasFresh, err := l.exists(ctx, fresh)
	switch {
	case err != nil:
		return false, err
	case hasFresh && !hasLayer && hasFormer:
		if err := cowcommon.Rename(ctx, l.backend, fresh, r.Layer); err != nil {
			return false, err
		}
	case hasFresh && hasFormer: // another layer has got the name, and the former content its snapshot
		if err := l.backend.Remove(ctx, fresh); err != nil {
			return false, err
		}
	case hasFresh:
		if err := l.backend.Remove(ctx, fresh); err != nil {
			return false, err
		}
		return true, l.forget(pendingDir, r.Volume)
	case !hasFormer:
		return true, l.forget(pendingDir, r.Volume)
	case exchanges && hasLayer && layer.Created.Equal(r.Replaced): // before the exchange
		return false, nil
	}
	if err := l.sealFormer(ctx, r.Volume); err != nil {
		return false, err
	}
	_, err = l.commitNamed(ctx, r, r.Name)
	return true, err
}
