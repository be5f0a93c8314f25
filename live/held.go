package live

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Held returns how many bytes a new moment of a layer or of a moment may be the last to hold: all that the layer has allocated, and
// the data that it has from its own moments, after a rollback or a merge. Data of its image or of the layer that it was forked from
// does not count. The filesystem counts for volumes that wrote data, and not for those that keep the data, so later nobody knows.
// Held is 0 if the filesystem does not count.
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
	held, whole, err := l.allocated(ctx, v.Name)
	if err != nil || whole || !IsMoment(v.Parent) {
		return held, err
	}
	parent, err := l.load(momentsDir, v.Parent)
	if errdefs.IsNotFound(err) || err == nil && parent.Layer != layer {
		return held, nil
	}
	if err != nil {
		return 0, err
	}
	inherited, err := l.heldIn(ctx, parent)
	return held + inherited, err
}

// allocated is how many bytes a volume has allocated, 0 if the filesystem does not count. Where the filesystem leaves
// out data that another volume references, moments may share all that they hold. Then it is all that the volume references, which whole says.
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
	held, err := l.heldBy(ctx, of, r.Layer)
	if err == nil {
		err = l.checkSame(ctx, of)
	}
	if err != nil {
		l.log.Warn("a moment counts with the limit of its layer", "layer", r.Layer, "moment", r.Volume, "error", err)
		held = of.Limit.Bytes
	}
	r.Held = held
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

// HeldBytes is the sum of the bytes that the moments of some layers hold, or may be the last to hold. The layers may be gone.
func (l *Layers) HeldBytes(ctx context.Context, owns func(layer string) bool) (sum uint64, err error) {
	records, err := l.records(momentsDir, "")
	if err != nil {
		return 0, err
	}
	for _, r := range records {
		if !owns(r.Layer) {
			continue
		}
		held, err := l.heldIn(ctx, r)
		if errdefs.IsNotFound(err) { // it has just gone
			continue
		}
		if err != nil {
			return 0, err
		}
		if sum+held < sum {
			return ^uint64(0), nil
		}
		sum += held
	}
	return sum, nil
}
