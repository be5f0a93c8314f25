package live

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// plain is the content of a layer with a shared root at one time, in a sealed volume with a root of its own. It is a moment
// without a name, so a crash leaves nothing that a Sweep does not remove.
type plain struct {
	volume string
	layers *Layers
	still  *Still // of which volume is a clone
	view   cowcommon.View
}

// plain makes such a volume of a layer as it is now, in use or not, or of a moment. The caller closes the result.
func (l *Layers) plain(ctx context.Context, v cowcommon.Volume) (_ *plain, err error) {
	p := &plain{layers: l}
	if p.still, err = l.still(ctx, v); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.still.Close())
		}
	}()
	unlock, err := l.begin(ctx) // nobody removes the volume before it has a view
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if !IsMoment(p.still.Volume) { // a clone would seal the layer
		return nil, fault.New(errdefs.ErrNotImplemented, "no snapshot has all of layer %s", v.Name)
	}
	r := newMoment(p.still.Layer, p.still.Base)
	if err := l.save(pendingDir, r); err != nil {
		return nil, err
	}
	p.volume = r.Volume
	err = l.backend.Clone(ctx, r.Volume, p.still.Volume, cowcommon.VolumeOptions{RootStyle: cowcommon.SnapshotRoot})
	if err == nil {
		err = l.seal(ctx, r.Volume)
	}
	if err == nil {
		p.view, err = l.backend.View(ctx, r.Volume)
	}
	if err != nil {
		return nil, errors.Join(err, l.endPending(context.WithoutCancel(ctx), r, l.own()))
	}
	if _, err = l.commitMade(r); err != nil { // the next step of anybody ends this
		return nil, errors.Join(err, p.view.Close())
	}
	return p, nil
}

// close removes the volume.
func (p *plain) close() error {
	err := p.view.Close()
	if err == nil {
		err = p.layers.drop(p.still.ctx, p.volume)
	}
	return errors.Join(err, p.still.Close())
}
