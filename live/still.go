package live

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
)

// Still is the content of a layer at one time, for as long as somebody reads it.
type Still struct {
	Moment
	layers *Layers
	ctx    context.Context // for Close
	view   cowcommon.View  // nil: Volume is the layer itself
	taken  bool            // the moment was made for the Still
}

// Still keeps the content of a layer as it is now, in use or not, or that of LAYER@SNAPSHOT. Volume has the content until the
// caller closes the result. The layer itself is held only until Still returns. After a crash a Sweep removes the moment.
//
// If the Backend cannot take the moment of such a layer, Volume is the layer itself: each View of it is of another
// moment. The same holds on a read-only filesystem.
func (l *Layers) Still(ctx context.Context, ref string) (s *Still, err error) {
	v, err := l.Find(ctx, ref)
	if err == nil {
		s, err = l.still(ctx, v)
	}
	if err != nil {
		return nil, fmt.Errorf("keep %s as it is: %w", ref, err)
	}
	return s, nil
}

// still is Still of a volume.
func (l *Layers) still(ctx context.Context, v cowcommon.Volume) (_ *Still, err error) {
	s := &Still{layers: l, ctx: context.WithoutCancel(ctx), taken: !IsMoment(v.Name)}
	unlock, err := l.begin(ctx) // nobody removes the moment before it has a view
	if errors.Is(err, syscall.EROFS) {
		s.Moment, err = l.standIn(ctx, v)
		return s, err
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if s.taken {
		s.Moment, err = l.takeUnnamed(ctx, v)
	} else {
		s.Moment, err = l.Moment(v.Name)
	}
	if err != nil || !IsMoment(s.Volume) {
		return s, err
	}
	if s.view, err = l.backend.View(ctx, s.Volume); err != nil {
		if s.taken {
			_, removeErr := l.removeUnneeded(context.WithoutCancel(ctx), s.Volume)
			err = errors.Join(err, removeErr)
		}
		return nil, err
	}
	return s, nil
}

// takeUnnamed makes a moment of a layer that has no name and no forks. Its volume is the layer's own if the Backend cannot make
// one.
func (l *Layers) takeUnnamed(ctx context.Context, v cowcommon.Volume) (Moment, error) {
	r, _, err := l.momentOf(ctx, v.Name)
	if err == nil {
		err = l.save(pendingDir, r)
	}
	if err != nil {
		return r.Moment, err
	}
	err = l.take(ctx, r, v.Name, cowcommon.VolumeOptions{})
	if errdefs.IsNotImplemented(err) {
		return l.standIn(ctx, v)
	}
	if err != nil {
		return r.Moment, err
	}
	return l.commitMade(r)
}

// standIn describes a layer as if it were a moment of its own, or describes a moment.
func (l *Layers) standIn(ctx context.Context, v cowcommon.Volume) (Moment, error) {
	if IsMoment(v.Name) {
		return l.Moment(v.Name)
	}
	r, _, err := l.momentOf(ctx, v.Name)
	r.Volume = v.Name
	return r.Moment, err
}

// Close ends the use of the moment, and removes it if it was made for that. If others are at work, a later Sweep removes it.
func (s *Still) Close() error {
	if s.view == nil {
		return nil
	}
	if err := s.view.Close(); err != nil || !s.taken {
		return err
	}
	return s.layers.drop(s.ctx, s.Volume)
}

// drop removes the volume of a moment that nothing needs. If others are at work, a later Sweep removes it.
func (l *Layers) drop(ctx context.Context, volume string) error {
	return l.ifAlone(ctx, func(ctx context.Context) error {
		_, err := l.removeUnneeded(ctx, volume)
		return err
	})
}
