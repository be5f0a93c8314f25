package sharedroot

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/namelock"
)

// errShared says that only a part of the tree is in the volume.
var errShared = fault.New(errdefs.ErrNotImplemented, "it has a shared root")

// Fork implements cowcommon.Forker. Returns errdefs.ErrNotImplemented if source has a shared root.
func (b *Backend) Fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	err := b.untilFolded(ctx, source, func() error { return b.fork(ctx, source, moment, names, opts) })
	return fault.WrapWith("fork volume", moment, fault.From(source), err)
}

func (b *Backend) fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	made := append([]string{moment}, names...)
	wants := []namelock.Want{shared(source)}
	for _, name := range made {
		wants = append(wants, exclusive(name))
	}
	unlock, err := b.lock(ctx, wants...)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.checkPlain(ctx, source); err != nil {
		return err
	}
	for _, name := range made {
		if err := b.clearNotes(ctx, name); err != nil {
			return err
		}
	}
	return cowcommon.Fork(ctx, b.Backend, source, moment, names, opts)
}

// CheckWhole implements cowcommon.Forker. Returns errdefs.ErrNotImplemented if the volume has a shared root.
func (b *Backend) CheckWhole(ctx context.Context, name string) error {
	err := b.untilFolded(ctx, name, func() error {
		unlock, err := b.lock(ctx, shared(name))
		if err != nil {
			return err
		}
		defer unlock()
		if err := b.checkPlain(ctx, name); err != nil {
			return err
		}
		return cowcommon.CheckWhole(ctx, b.Backend, name)
	})
	return fault.Wrap("examine volume", name, err)
}

// checkPlain returns an error unless a volume, which the caller has locked, has all of its tree.
func (b *Backend) checkPlain(ctx context.Context, name string) error {
	switch s, _, err := b.look(ctx, name); {
	case err != nil:
		return err
	case s == stateFolding:
		return errFolding
	case s == stateShared:
		return errShared
	}
	return nil
}

// exchanger is a Backend over another that can exchange volumes.
type exchanger struct {
	*Backend
}

// Unwrap returns the Backend that all other interfaces are of.
func (e *exchanger) Unwrap() cowcommon.Backend { return e.Backend }

// Exchange implements cowcommon.Exchanger. Returns errdefs.ErrNotImplemented if a volume has a shared root, and
// fault.ErrInUse if one is the lower of shared volumes.
func (e *exchanger) Exchange(ctx context.Context, name, other string) error {
	return fault.WrapWith("exchange volume", name, "with "+other, e.exchange(ctx, name, other))
}

func (e *exchanger) exchange(ctx context.Context, name, other string) error {
	for _, n := range []string{name, other} {
		if err := cowcommon.CheckID(n); err != nil {
			return err
		}
	}
	unlock, err := e.lock(ctx, exclusive(name), exclusive(other))
	if err != nil {
		return err
	}
	defer unlock()
	for _, n := range []string{name, other} {
		if err := e.prepareExchange(ctx, n); err != nil {
			return err
		}
	}
	return cowcommon.Exchange(ctx, e.Backend.Backend, name, other)
}

// prepareExchange leaves no note of a volume, which the caller has locked exclusively: notes have the names of volumes.
func (e *exchanger) prepareExchange(ctx context.Context, name string) error {
	if err := e.checkNoUsers(ctx, name); err != nil {
		return err
	}
	s, _, err := e.look(ctx, name)
	if err == nil && s == stateShared {
		err = errShared
	}
	if err != nil {
		return err
	}
	if err := e.foldLocked(ctx, name); err != nil {
		return err
	}
	return e.restoreLimit(ctx, name) // or fail: foldLocked goes on without
}
