package live

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// MergeOptions says how a fork is merged.
type MergeOptions struct {
	// Into is the layer that gets the changes, "" for the layer from which the fork was made.
	Into string
	// Live changes the tree in place, also while it is in use. An error or a crash leaves a part of the changes.
	Live bool
	// Changing is as in RollbackOptions.
	Changing Changing
	// Resolve decides about a conflict. nil: nothing is merged if there is one.
	Resolve func(Conflict) Resolution
}

// Resolution is a decision about a conflict.
type Resolution int

const (
	// Refuse merges nothing.
	Refuse Resolution = iota
	// Ours keeps the layer's state of the path.
	Ours
	// Theirs takes the fork's state of the path, with all below it.
	Theirs
)

// Conflict is a path that the fork and the layer have changed in different ways.
type Conflict struct {
	Path string
	// Fork and Layer are the two changes. A change of the kind ChangeModify may be that of a path above or below, or of
	// another name of the same file; Reason says so.
	Fork, Layer archive.ChangeType
	Reason      string
}

// ConflictError says that nothing was merged, because of conflicts. It is also an errdefs.ErrConflict.
type ConflictError struct{ Conflicts []Conflict }

// Error counts the conflicts.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("both sides have changed %d paths in different ways, such as %q", len(e.Conflicts), e.Conflicts[0].Path)
}

// Unwrap returns errdefs.ErrConflict.
func (e *ConflictError) Unwrap() error { return errdefs.ErrConflict }

// Merged is the result of a merge.
type Merged struct {
	Into      string
	Changes   []archive.Change // that were applied
	Conflicts []Conflict       // that were resolved
	Before    Moment           // the snapshot with the content of before; none if there was nothing to apply
}

// Merge applies the changes of a fork, since it was forked, to the layer from which it was forked or to another. Paths that
// both have changed in different ways are conflicts. Both may be in use; without opts.Live, the layer must not be. Without
// opts.Live all changes are applied in one step.
//
// Returns a *ConflictError if there is a conflict that opts does not resolve, and ErrNotFound if fork is no fork. Returns
// ErrFailedPrecondition if the layer is in use or sealed. Nothing has changed then. Merge waits while another merge or a rollback of the
// layer is at work, until ctx ends.
func (l *Layers) Merge(ctx context.Context, fork string, opts MergeOptions) (merged Merged, err error) {
	unlock, err := l.begin(ctx)
	if err != nil {
		return merged, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	f, err := l.statNamed(ctx, fork)
	if err != nil {
		return merged, err
	}
	base, err := l.ForkedFrom(ctx, f)
	if err != nil {
		return merged, err
	}
	if merged.Into = opts.Into; merged.Into == "" {
		merged.Into = base.Layer
	}
	if merged.Into == fork {
		return merged, fault.New(errdefs.ErrInvalidArgument, "layer %s cannot be merged into itself", fork)
	}
	unlockContent, err := l.lockContent(ctx, merged.Into)
	if err != nil {
		return merged, err
	}
	defer func() { err = errors.Join(err, unlockContent()) }()
	v, vBase, err := l.stat(ctx, merged.Into)
	if err != nil {
		return merged, fmt.Errorf("layer to merge into: %w", err)
	}
	if v.Sealed {
		return merged, fault.Wrap("merge into layer", v.Name, fault.New(fault.ErrSealed, "other layers were made from it"))
	}
	const attempts = 3
	for range attempts {
		m := merge{l: l, fork: fork, base: base.Volume, layer: v, opts: opts}
		err = m.run(ctx, newMoment(v.Name, vBase), &merged)
		if !errors.Is(err, errChanged) {
			return merged, err
		}
		if v, err = l.backend.Stat(ctx, v.Name); err != nil {
			return merged, err
		}
	}
	return merged, fault.Wrap("merge into layer", v.Name, fault.New(errdefs.ErrAborted, "it changed while it was merged; merge it again"))
}

// errChanged says that the layer changed during a merge.
var errChanged = errors.New("the layer changed meanwhile")

// merge is one attempt to merge.
type merge struct {
	l     *Layers
	fork  string
	base  string // volume of the moment from which both come
	layer cowcommon.Volume
	opts  MergeOptions
}

// run merges. now becomes the moment of the layer with which the fork is compared.
func (m *merge) run(ctx context.Context, now record, merged *Merged) (err error) {
	l := m.l
	if err := l.save(pendingDir, now); err != nil {
		return err
	}
	if err := l.take(ctx, now, m.layer.Name, cowcommon.VolumeOptions{}); err != nil {
		return err
	}
	now = m.holding(ctx, now)
	if _, err := l.commit(now); err != nil {
		return errors.Join(err, l.endPending(context.WithoutCancel(ctx), now, l.own()))
	}
	kept := false
	defer func() {
		if !kept { // it has no name, so it goes unless the layer is made from it
			_, dropErr := l.removeUnneeded(context.WithoutCancel(ctx), now.Volume)
			err = errors.Join(err, dropErr)
		}
	}()
	theirs, err := l.comparer.CompareMore(ctx, m.fork, m.base, cowcommon.Auto, treediff.Xattrs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.Close()) }()
	ours, err := l.comparer.CompareMore(ctx, now.Volume, m.base, cowcommon.Auto, treediff.Xattrs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.Close()) }()
	p, err := m.plan(ctx, theirs, ours)
	if err != nil {
		return err
	}
	merged.Changes, merged.Conflicts = p.changes, p.conflicts
	if p.isEmpty() {
		return nil
	}
	apply := func(ctx context.Context) func(root *os.File) error {
		return func(root *os.File) error { return p.apply(ctx, root, theirs.Dir(), ours.Dir()) }
	}
	if m.opts.Live {
		now.Message = "before the merge of " + m.fork
		if merged.Before, err = l.commitNamed(ctx, now, beforeMerge); err != nil {
			return err
		}
		kept = true
		if ctx, err = m.opts.Changing.context(ctx); err != nil {
			return err
		}
		return l.applyLive(ctx, m.layer, apply(ctx))
	}
	r := newMoment(m.layer.Name, now.Base)
	r.Name, r.Message = beforeMerge, "before the merge of "+m.fork
	before, err := l.replace(ctx, r, m.layer, now.Volume, func(volume string) error { return l.apply(ctx, volume, apply(ctx)) })
	if err != nil {
		return err
	}
	if err := m.checkUnchanged(context.WithoutCancel(ctx), before, now); err != nil {
		return err
	}
	merged.Before, kept = before, true
	return nil
}

// holding is Layers.holding of the moment before the merge. The layer is made from it, and gets data that the fork has allocated: on
// btrfs that counts for nobody once the fork is gone.
func (m *merge) holding(ctx context.Context, now record) record {
	now = m.l.holding(ctx, now, m.layer)
	if now.Held == 0 {
		return now
	}
	added, err := m.l.Held(ctx, m.fork)
	if err != nil {
		m.l.log.Warn("the data that a merge adds to a layer cannot be measured, and does not count", "layer", m.layer.Name, "fork", m.fork, "error", err)
	}
	if added > 0 {
		now.Held, now.Of = now.Held+added, time.Time{}
	}
	return now
}

// beforeMerge begins the names of the snapshots that a merge takes.
const beforeMerge = "before-merge"

// checkUnchanged compares the former content of the layer with that of which the merge was made. If it is another, it
// makes it the content again, and returns errChanged.
func (m *merge) checkUnchanged(ctx context.Context, before Moment, now record) (err error) {
	defer func() {
		if err != nil && !errors.Is(err, errChanged) {
			err = fmt.Errorf("layer %s may have changed while it was merged, and its content is snapshot %s: %w", m.layer.Name, before.Name, err)
		}
	}()
	c, err := m.l.comparer.CompareMore(ctx, before.Volume, now.Volume, cowcommon.Auto, treediff.Xattrs|treediff.Times)
	if err != nil {
		return err
	}
	changed := len(c.Changes) > 0
	if err := c.Close(); err != nil || !changed {
		return err
	}
	v, err := m.l.backend.Stat(ctx, m.layer.Name)
	if err != nil {
		return err
	}
	// The moment of the merged content has no name, so it goes with the next Sweep.
	if _, err := m.l.replace(ctx, newMoment(m.layer.Name, now.Base), v, before.Volume, nil); err != nil {
		return err
	}
	m.forgetBefore(before)
	return errChanged
}

// forgetBefore takes the name off the snapshot of before: nothing was merged. A crash before that leaves the snapshot.
func (m *merge) forgetBefore(before Moment) {
	r, err := m.l.load(momentsDir, before.Volume)
	if err == nil {
		err = m.l.dropName(r)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		m.l.log.Warn("the snapshot of a merge that was taken back cannot be deleted, and stays", "layer", m.layer.Name, "snapshot", before.Name, "error", err)
	}
}
