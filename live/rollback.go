package live

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// RollbackOptions says how a layer is rolled back.
type RollbackOptions struct {
	// Live changes the tree of a layer in place, also while it is in use. An error or a crash leaves a part of the changes.
	Live bool
	// Changing returns the context of the changes in place, given the context of the call. So the end of the call's
	// context need not leave a part of the changes. nil: both are the same.
	Changing Changing
}

// Changing returns the context of changes in place that are about to begin.
type Changing func(ctx context.Context) context.Context

// context is the context of the changes. Returns an error if that of the call has ended before.
func (c Changing) context(ctx context.Context) (context.Context, error) {
	if err := context.Cause(ctx); err != nil || c == nil {
		return ctx, err
	}
	return c(ctx), nil
}

// Rollback gives a layer the content of one of its snapshots. It returns the snapshot that has the content of before. Newer
// snapshots stay. Returns ErrFailedPrecondition if the layer is in use, unless opts.Live is set, or if it is sealed. Returns
// ErrNotImplemented if the Backend cannot clone all of the snapshot, unless opts.Live is set. Then nothing has changed. Rollback waits
// while another rollback or merge of the layer is at work, until ctx ends.
func (l *Layers) Rollback(ctx context.Context, layer, snapshot string, opts RollbackOptions) (before Moment, err error) {
	unlock, err := l.begin(ctx)
	if err != nil {
		return before, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	unlockContent, err := l.lockContent(ctx, layer)
	if err != nil {
		return before, err
	}
	defer func() { err = errors.Join(err, unlockContent()) }()
	to, err := l.Get(layer, snapshot)
	if err != nil {
		return before, err
	}
	v, base, err := l.stat(ctx, layer)
	if err != nil {
		return before, err
	}
	r := newMoment(layer, base)
	r.Name, r.Message = "before-rollback", "before the rollback to "+snapshot
	if opts.Live {
		return l.rollbackLive(ctx, r, v, to, opts.Changing)
	}
	return l.replace(ctx, r, v, to.Volume, nil)
}

func (l *Layers) rollbackLive(ctx context.Context, r record, v cowcommon.Volume, to Moment, changing Changing) (before Moment, err error) {
	prefix := r.Name
	r.Name = ""
	if err := l.save(pendingDir, r); err != nil {
		return before, err
	}
	if err := l.take(ctx, r, v.Name, cowcommon.VolumeOptions{}); err != nil {
		return before, err
	}
	if before, err = l.commitNamed(ctx, l.holding(ctx, r, v), prefix); err != nil {
		return before, err
	}
	c, err := l.comparer.CompareMore(ctx, to.Volume, r.Volume, cowcommon.Auto, treediff.Xattrs|treediff.Times)
	if err != nil {
		return before, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if ctx, err = changing.context(ctx); err != nil {
		return before, err
	}
	return before, l.applyLive(ctx, v, func(root *os.File) error { return copyChanges(ctx, root, c.Dir(), c.Changes) })
}

// applyLive is apply to a layer with which the changes were compared. Returns ErrUnavailable if another has got its name since.
func (l *Layers) applyLive(ctx context.Context, v cowcommon.Volume, change func(root *os.File) error) error {
	return l.apply(ctx, v.Name, func(root *os.File) error {
		if err := l.checkSame(ctx, v); err != nil {
			return err
		}
		return change(root)
	})
}

// apply calls change with the root of a volume, and makes the changes survive a power cut. Returns ErrFailedPrecondition if
// the volume is sealed.
func (l *Layers) apply(ctx context.Context, name string, change func(root *os.File) error) (err error) {
	v, err := l.backend.Stat(ctx, name)
	if err != nil {
		return err
	}
	if v.Sealed {
		return fault.Wrap("change layer", name, errSealed)
	}
	dir, err := l.backend.Mount(ctx, name, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.backend.Unmount(context.WithoutCancel(ctx), name)) }()
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = errors.Join(change(root), root.Close())
	if err != nil {
		return err
	}
	return l.backend.Sync(ctx, name)
}

// copyChanges makes the changes in the tree at root, from the tree in the directory from.
func copyChanges(ctx context.Context, root *os.File, from string, changes []archive.Change) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if _, err := treecopy.Copy(ctx, root, src, changes, treecopy.Options{}); err != nil {
		return fmt.Errorf("copy changes: %w", err)
	}
	return nil
}
