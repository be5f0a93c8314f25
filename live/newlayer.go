package live

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// NewLayer prepares for a new layer, which the caller then makes. Snapshots of a former layer of that name lose their
// names, and the next Sweep removes them. Its schedules end. Returns ErrAlreadyExists if there is a layer of that name.
// Returns ErrFailedPrecondition if a step that has not ended is about to give a layer that name. Fork and Adopt call
// NewLayer themselves.
func (l *Layers) NewLayer(ctx context.Context, name string) (err error) {
	pending, err := l.recorded(pendingDir, tag(name))
	if err != nil {
		return err
	}
	named, err := l.mayBeNamed(name)
	if err != nil {
		return err
	}
	if len(pending) > 0 || named || len(l.scheduleFiles(&name)) > 0 {
		return l.newLayerLocked(ctx, name)
	}
	return nil
}

func (l *Layers) newLayerLocked(ctx context.Context, name string) (err error) {
	unlock, err := l.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return l.newLayers(ctx, name)
}

// newLayers is NewLayer for several layers, between begin and unlock.
func (l *Layers) newLayers(ctx context.Context, names ...string) error {
	tags := make(map[string]string, len(names))
	for _, name := range names {
		tags[tag(name)] = name
	}
	if err := l.checkFree(ctx, names); err != nil {
		return err
	}
	pending, err := l.recorded(pendingDir, "")
	if err != nil {
		return err
	}
	for _, volume := range pending {
		if name, ok := tags[tagOf(volume)]; ok {
			return fault.New(errdefs.ErrFailedPrecondition, "layer %s may get its name back when an interrupted step is ended; try again later", name)
		}
	}
	if err := l.checkFree(ctx, names); err != nil { // a step may have given a layer its name back since
		return err
	}
	if err := l.endSchedulesOf(ctx, names); err != nil {
		return err
	}
	named, err := l.mayBeNamed(names...)
	if err != nil || !named {
		return err
	}
	recorded, err := l.recorded(momentsDir, "")
	if err != nil {
		return err
	}
	for _, volume := range recorded {
		if _, ok := tags[tagOf(volume)]; !ok {
			continue
		}
		r, err := l.load(momentsDir, volume)
		if err == nil && r.Name != "" && tags[tag(r.Layer)] == r.Layer {
			err = l.dropName(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkFree returns ErrAlreadyExists if there is a layer of one of the names.
func (l *Layers) checkFree(ctx context.Context, names []string) error {
	for _, name := range names {
		_, taken, err := l.exists(ctx, name)
		if taken {
			err = fault.New(errdefs.ErrAlreadyExists, "layer %s", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropName makes a snapshot a moment that exists for its forks alone.
func (l *Layers) dropName(r record) error {
	r.Name, r.Message, r.Schedule = "", "", ""
	return l.save(momentsDir, r)
}
