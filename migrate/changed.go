package migrate

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// errChanged says that a layer of a container in the target is older than that in the source.
var errChanged = fault.New(errdefs.ErrFailedPrecondition, "it was changed in the old root after it was moved")

// isChanged reports whether the source's layer of a container was changed since a run has made it. Layers of images do
// not change.
func (m *Migration) isChanged(ctx context.Context, j *journal, item Item) (_ bool, err error) {
	if item.Layer == nil || item.Layer.Kind == ImageLayer || !j.hasBegun(item) {
		return false, nil
	}
	content, err := m.source.Open(ctx, item.Layer.ID)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	return changedSince(ctx, content.Dir, j.since(item))
}

// refresh removes the containers' layers that were changed in the source since an earlier run has made them. Everything
// above them goes too, and this run makes all of it again. Once they are committed, they stay: the engine may have changed
// them in the target as well. They are problems then.
func (r *run) refresh(ctx context.Context, items []Item) error {
	stale := newDependents()
	for _, item := range items {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if stale.check(item) != nil {
			if r.journal.hasBegun(item) {
				stale.lost(item)
			}
			continue
		}
		changed, err := r.isChanged(ctx, r.journal, item)
		switch {
		case ctx.Err() != nil:
			return err
		case err != nil: // damage of the source
			r.broken[item.key()] = err
		case changed && r.journal.mayBeCommitted():
			r.broken[item.key()] = errChanged
		case changed:
			r.log.Info("it was changed in the old root, and is made again", item.key().kind, item.key().id)
			stale.lost(item)
		}
	}
	for n := len(items) - 1; n >= 0; n-- {
		if !stale.missing[items[n].key()] {
			continue
		}
		if err := r.remove(ctx, items[n]); err != nil {
			return err
		}
	}
	return nil
}
