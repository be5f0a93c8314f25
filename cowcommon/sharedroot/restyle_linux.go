package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

func (b *Backend) setRootStyle(ctx context.Context, name string, style cowcommon.RootStyle) error {
	v, err := b.Stat(ctx, name)
	if err != nil {
		return err
	}
	if style != cowcommon.SharedRoot {
		return b.fold(ctx, name)
	}
	return b.untilFolded(ctx, name, func() error { return b.unfold(ctx, v) })
}

// unfold makes a volume of style snapshot a shared one.
func (b *Backend) unfold(ctx context.Context, v cowcommon.Volume) error {
	lower, err := b.lowerFor(ctx, v)
	if err != nil {
		return err
	}
	unlock, err := b.lock(ctx, shared(lower), exclusive(v.Name))
	if err != nil {
		return err
	}
	defer unlock()
	s, _, err := b.look(ctx, v.Name)
	switch {
	case err != nil || s == stateShared:
		return err
	case s == stateFolding:
		return errFolding
	}
	if err := b.Alone(ctx, v.Name, func(*os.File) error { return nil }); err != nil { // before the cost of a comparison
		return err
	}
	steps, err := b.planUnfold(ctx, v.Name, lower)
	if err == nil {
		err = b.index.add(v.Name, lower)
	}
	if err != nil {
		return err
	}
	err = b.Alone(ctx, v.Name, func(root *os.File) error {
		err := unfold(ctx, root, lower, steps)
		if errors.Is(err, errTimesLeft) { // it has happened
			b.log.Warn("shared roots: a volume has become shared", "volume", v.Name, "error", err)
			err = nil
		}
		if err != nil {
			return err
		}
		return unix.Syncfs(int(root.Fd()))
	})
	if err != nil {
		return errors.Join(err, b.foldLocked(b.ctx, v.Name))
	}
	return nil
}

// lowerFor is the volume over which another can be shared: its parent, or the lower of its parent.
func (b *Backend) lowerFor(ctx context.Context, v cowcommon.Volume) (string, error) {
	if v.Parent == "" {
		return "", fault.New(errdefs.ErrFailedPrecondition, "it was not cloned from a volume that is still there")
	}
	s, lower, err := b.look(ctx, v.Parent)
	if err != nil {
		return "", fmt.Errorf("parent: %w", err)
	}
	if s == stateNone {
		lower = v.Parent
	}
	if err := b.canShare(v.Name, lower); err != nil {
		return "", err
	}
	below, err := b.Backend.Stat(ctx, lower)
	if err == nil && !below.Sealed {
		err = fault.New(errdefs.ErrFailedPrecondition, "it is not sealed")
	}
	if err != nil {
		return "", fmt.Errorf("volume %s, which it would share: %w", lower, err)
	}
	return lower, nil
}

// planUnfold compares a volume, which the caller has locked, with its future lower.
func (b *Backend) planUnfold(ctx context.Context, name, lower string) (_ []unfoldStep, err error) {
	base, err := b.Backend.View(ctx, lower)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	top, err := b.Backend.View(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	hints, err := cowcommon.Hints(ctx, b.Backend, base, top)
	if errors.Is(err, treediff.ErrNoHints) {
		err = fault.New(errdefs.ErrNotImplemented, "the filesystem does not list its changes: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return planUnfold(ctx, hints, top.Dir(), base.Dir())
}
