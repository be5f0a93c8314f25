package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/poll"
	"github.com/cowshed/cowshed/quota"
)

// replace gives a layer that nobody uses a new content, which starts as that of the moment source. prepare may be nil; it
// changes the volume that becomes the layer. The former content becomes the moment r. If r has a name, it is a prefix, and the
// moment gets the next free number. From the call that takes the layer's name away, replace goes on although ctx has ended.
// Returns ErrUnavailable if the outcome of a call is not known. A later command then ends the replacement.
//
// The new content has the root style of source. With an Exchanger, the volume r.Volume is first the new content, and
// then exchanged for the layer. Otherwise the layer is renamed to it, and a volume beside it to the layer.
func (l *Layers) replace(ctx context.Context, r record, v cowcommon.Volume, source string, prepare func(volume string) error) (former Moment, err error) {
	if v.Sealed {
		return former, fault.Wrap("replace layer", v.Name, errSealed)
	}
	if err := cowcommon.CheckWhole(ctx, l.backend, source); err != nil {
		return former, fault.Wrap("replace layer", v.Name, err)
	}
	r.Replaced, r.Limit = v.Created, v.Limit.Bytes
	if err := l.save(pendingDir, l.begun(r)); err != nil {
		return former, err
	}
	r, err = l.beginReplace(ctx, r, v, source, prepare)
	switch {
	case errdefs.IsUnavailable(err): // the last call may still happen, so the record stays
		return former, fmt.Errorf("a later command has to find out if layer %s gets its new content: %w", v.Name, err)
	case err != nil:
		return former, errors.Join(err, l.endPending(context.WithoutCancel(ctx), r, l.own()))
	}
	former, _, err = l.endReplace(context.WithoutCancel(ctx), r, l.own())
	switch {
	case errors.Is(err, errSealed):
		return former, fault.Wrap("replace layer", v.Name, err)
	case err != nil:
		return former, fmt.Errorf("layer %s gets its new content, but a later command has to complete that: %w", v.Name, err)
	}
	return former, nil
}

// errSealed says that a layer cannot get another content.
var errSealed = fault.New(fault.ErrSealed, "other layers were made from it")

// exchanges reports whether the Backend exchanges two volumes in one step.
func (l *Layers) exchanges() bool {
	_, exchanges := cowcommon.As[cowcommon.Exchanger](l.backend)
	return exchanges
}

// begun is the record of a replacement whose new content has not been made. With an Exchanger it is that of a step that leaves
// nothing: the time of that volume tells later if there was an exchange.
func (l *Layers) begun(r record) record {
	if l.exchanges() {
		r.Name, r.Replaced = "", time.Time{}
	}
	return r
}

// beginReplace takes the steps of a replacement that can be undone. endReplace takes the others. It returns the record of the
// replacement.
func (l *Layers) beginReplace(ctx context.Context, r record, v cowcommon.Volume, source string, prepare func(volume string) error) (record, error) {
	fresh := r.Volume
	if !l.exchanges() {
		fresh += newSuffix
	}
	made, err := l.makeFresh(ctx, fresh, source, v.Limit)
	if err != nil {
		return l.begun(r), err
	}
	if l.exchanges() {
		r.Made = made
	}
	if prepare != nil {
		err = prepare(fresh)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return r, err
	}
	ctx = context.WithoutCancel(ctx) // a call that is given up may happen later, and leave the layer without a name
	if !l.exchanges() {
		return r, cowcommon.Rename(ctx, l.backend, v.Name, r.Volume)
	}
	if err := l.save(pendingDir, r); err != nil {
		return r, err
	}
	return r, cowcommon.Exchange(ctx, l.backend, v.Name, r.Volume)
}

// makeFresh makes the volume that becomes a layer, and returns its time.
func (l *Layers) makeFresh(ctx context.Context, fresh, source string, limit quota.Limit) (made time.Time, err error) {
	from, err := l.backend.Stat(ctx, source)
	if err == nil {
		err = l.backend.Clone(ctx, fresh, source, cowcommon.VolumeOptions{Limit: limit, RootStyle: from.RootStyle})
	}
	if err != nil {
		return made, err
	}
	v, err := l.backend.Stat(ctx, fresh)
	return v.Created, err
}

// seal seals the former volume of a layer, in its root style: moments that share a volume are compared without a walk.
func (l *Layers) seal(ctx context.Context, volume string) error {
	return cowcommon.SealAsIs(ctx, l.backend, volume)
}

// sealSoon is seal, and waits a little: somebody who was about to use the layer may have its former volume locked for a moment.
func (l *Layers) sealSoon(ctx context.Context, volume string) error {
	return whileInUse(ctx, 5*time.Second, func() error { return l.seal(ctx, volume) })
}

// whileInUse calls try again as long as a volume is in use, for a while.
func whileInUse(ctx context.Context, atMost time.Duration, try func() error) error {
	pauses := poll.Pauses{First: time.Millisecond, Longest: 50 * time.Millisecond, AtMost: atMost}
	return poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		err = try()
		return errors.Is(err, fault.ErrInUse), err
	})
}

// endReplace ends a replacement, interrupted or not. done says that the layer has its new content, or that nothing is left to
// undo. Returns errSealed if somebody sealed the layer meanwhile. Then it has its former content.
func (l *Layers) endReplace(ctx context.Context, r record, end ending) (former Moment, done bool, err error) {
	layer, hasLayer, err := end.find(ctx, r.Layer)
	if err != nil {
		return former, false, err
	}
	replaced, hasFormer, err := end.find(ctx, r.Volume)
	if err != nil {
		return former, false, err
	}
	fresh := r.Volume + newSuffix
	next, hasFresh, err := end.find(ctx, fresh)
	switch {
	case err != nil:
		return former, false, err
	case hasFresh && !hasLayer && replaced.Sealed: // a replacement seals it later
		err := cowcommon.Rename(ctx, l.backend, r.Volume, r.Layer)
		if err == nil {
			err = l.backend.Remove(ctx, fresh)
		}
		if err == nil {
			err = l.forget(pendingDir, r.Volume)
		}
		if err != nil {
			return former, false, err
		}
		return former, true, errSealed
	case hasFresh && !hasLayer && hasFormer:
		if err := cowcommon.Rename(ctx, l.backend, fresh, r.Layer); err != nil {
			return former, false, err
		}
		layer = next
	case hasFresh: // the layer was not renamed, or another has got its name
		if err := l.backend.Remove(ctx, fresh); err != nil {
			return former, false, err
		}
	case l.exchanges() && hasFormer && r.isBefore(layer, replaced):
		return former, false, nil
	}
	if !hasFormer {
		return former, true, l.forget(pendingDir, r.Volume)
	}
	if err := l.keepLimit(ctx, r, replaced, layer); err != nil {
		return former, false, err
	}
	if err := end.seal(ctx, r.Volume); err != nil {
		return former, false, err
	}
	r = l.holding(ctx, r, replaced)
	if r.Name == "" {
		former, err = l.commit(r)
	} else {
		former, err = l.commitNamed(ctx, r, r.Name)
	}
	return former, true, err
}

// isBefore reports whether volumes are not exchanged yet: layer, the zero Volume if it is gone, and that of the moment. A step of an
// earlier version does not know when the latter was made.
func (r record) isBefore(layer, volume cowcommon.Volume) bool {
	if r.Made.IsZero() {
		return layer.Created.Equal(r.Replaced)
	}
	return volume.Created.Equal(r.Made)
}

// keepLimit gives a layer the limit that somebody has set for its former volume since the replacement of the record r began. A limit
// that was set for the layer afterwards stays. If the filesystem refuses the limit, the layer keeps its own.
func (l *Layers) keepLimit(ctx context.Context, r record, replaced, layer cowcommon.Volume) error {
	if replaced.Limit.Bytes == r.Limit || layer.Limit.Bytes != r.Limit {
		return nil
	}
	err := cowcommon.SetLimit(ctx, l.backend, r.Layer, replaced.Limit)
	if errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) {
		l.log.Warn("a limit that was set during a rollback or a merge cannot be set again", "layer", r.Layer, "limit", replaced.Limit, "error", err)
		return nil
	}
	return err
}
