package live

import (
	"context"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/dirlist"
)

// Held returns how many bytes a new moment of a layer or of a moment may be the last to hold: all that the layer has
// allocated, and the data that it has from its own moments, after a rollback or a merge. Data of its image or of the
// layer that it was forked from does not count. The filesystem counts for volumes that wrote data, and not for those
// that keep the data, so the number cannot be found out later. Held is 0 if the filesystem does not count.
func (l *Layers) Held(ctx context.Context, volume string) (uint64, error) {
	v, err := l.backend.Stat(ctx, volume)
	if err != nil {
		return 0, err
	}
	if !IsMoment(volume) {
		return l.heldBy(ctx, v, volume)
	}
	r, err := l.load(momentsDir, volume)
	if err != nil {
		return 0, err
	}
	return l.heldIn(ctx, r)
}

// HeldForForks is Held of a moment that a new fork needs, as it counts for the fork: 0 for a layer without a limit.
func (l *Layers) HeldForForks(ctx context.Context, source string) (uint64, error) {
	if IsMoment(source) {
		r, err := l.load(momentsDir, source)
		return r.Held, err
	}
	v, err := l.backend.Stat(ctx, source)
	if err != nil || v.Limit.Bytes == 0 {
		return 0, err
	}
	return l.heldBy(ctx, v, source)
}

// heldIn is Held of a recorded moment. For a layer without a limit it is the data that the moment has allocated itself.
func (l *Layers) heldIn(ctx context.Context, r record) (uint64, error) {
	if r.Held != 0 {
		return r.Held, nil
	}
	held, _, err := l.allocated(ctx, r.Volume)
	return held, err
}

// heldBy is Held of a volume that is a layer, or was until now.
func (l *Layers) heldBy(ctx context.Context, v cowcommon.Volume, layer string) (uint64, error) {
	held, _, err := l.heldOrWhole(ctx, v, layer)
	return held, err
}

// heldOrWhole is heldBy. whole is that of allocated.
func (l *Layers) heldOrWhole(ctx context.Context, v cowcommon.Volume, layer string) (held uint64, whole bool, err error) {
	held, whole, err = l.allocated(ctx, v.Name)
	if err != nil || whole || !IsMoment(v.Parent) {
		return held, whole, err
	}
	parent, err := l.load(momentsDir, v.Parent)
	if errdefs.IsNotFound(err) || err == nil && parent.Layer != layer {
		return held, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	inherited, err := l.heldIn(ctx, parent)
	return held + inherited, false, err
}

// allocated is how many bytes a volume has allocated, 0 if the filesystem does not count. Where the filesystem leaves
// out data that another volume references, moments may share all that they hold. Then it is all that the volume
// references, which whole says.
func (l *Layers) allocated(ctx context.Context, volume string) (bytes uint64, whole bool, err error) {
	usage, err := cowcommon.Usage(ctx, l.backend, volume)
	switch {
	case errdefs.IsNotImplemented(err):
		return 0, false, nil
	case usage.Exclusive:
		return usage.Total, true, err
	}
	return usage.Bytes, false, err
}

// holding returns the record of a moment that was made of a volume with a limit, with the bytes that it holds. Nothing else
// bounds these. If they cannot be counted, they are the limit.
func (l *Layers) holding(ctx context.Context, r record, of cowcommon.Volume) record {
	if of.Limit.Bytes == 0 {
		return r
	}
	held, whole, err := l.heldOrWhole(ctx, of, r.Layer)
	if err == nil {
		err = l.checkSame(ctx, of)
	}
	if err != nil {
		l.log.Warn("a moment counts with the limit of its layer", "layer", r.Layer, "moment", r.Volume, "error", err)
		held = of.Limit.Bytes
	}
	r.Held = held
	if err == nil && !whole {
		r.Of = of.Created
	}
	return r
}

// checkSame returns ErrUnavailable if another volume has got the name of a volume.
func (l *Layers) checkSame(ctx context.Context, v cowcommon.Volume) error {
	now, err := l.backend.Stat(ctx, v.Name)
	if err == nil && !now.Created.Equal(v.Created) {
		err = fault.New(errdefs.ErrUnavailable, "layer %s has got another content meanwhile", v.Name)
	}
	return err
}

// HeldBytes is the sum of the bytes that the moments of some layers hold, or may be the last to hold. The layers may be gone. A moment
// that exists for forks alone counts for these, and not for its layer.
//
// The count of data that a volume has allocated only grows while moments of it keep the data. So of its moments for forks, only the
// largest counts.
func (l *Layers) HeldBytes(ctx context.Context, owns func(layer string) bool) (sum uint64, err error) {
	volumes, err := l.recordedBy(dirlist.Read, momentsDir, "")
	if err != nil {
		return 0, err
	}
	counted := make(map[heldOf]uint64)
	for _, r := range l.loadAll(momentsDir, volumes) {
		held, err := l.heldFor(ctx, r, owns)
		if errdefs.IsNotFound(err) { // it has just gone
			continue
		}
		if err != nil {
			return 0, err
		}
		if r.isForForks() && !r.Of.IsZero() {
			of := heldOf{r.Layer, r.Of.UnixNano()}
			before := counted[of]
			counted[of] = max(before, held)
			held = counted[of] - before
		}
		if sum+held < sum {
			return ^uint64(0), nil
		}
		sum += held
	}
	return sum, nil
}

// heldOf is the volume whose data moments hold: that of a layer, made at a time.
type heldOf struct {
	layer string
	made  int64
}

// isForForks reports whether a moment exists for its forks alone.
func (r record) isForForks() bool { return r.Name == "" && len(r.Forks) > 0 }

// heldFor is how much of a moment's data counts for the owner of some layers.
func (l *Layers) heldFor(ctx context.Context, r record, owns func(layer string) bool) (uint64, error) {
	if r.isForForks() {
		if !slices.ContainsFunc(r.Forks, func(f Fork) bool { return owns(f.Name) }) {
			return 0, nil
		}
		if !owns(r.Layer) { // nobody bounds the layer, if nothing was noted
			return r.Held, nil
		}
		return l.heldIn(ctx, r)
	}
	if !owns(r.Layer) {
		return 0, nil
	}
	return l.heldIn(ctx, r)
}
