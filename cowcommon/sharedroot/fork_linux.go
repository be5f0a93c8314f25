package sharedroot

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/namelock"
)

// Fork implements cowcommon.Forker. The forks of a shared volume are shared over its lower, unless the options name
// SnapshotRoot. So is the moment. Returns errdefs.ErrNotImplemented if the options name SharedRoot for those of another volume.
func (b *Backend) Fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	err := untilSteady(ctx, func() error {
		return b.untilFolded(ctx, source, func() error { return b.fork(ctx, source, moment, names, opts) })
	})
	return fault.WrapWith("fork volume", moment, fault.From(source), err)
}

func (b *Backend) fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	lower, err := b.index.lower(source)
	if err != nil {
		return err
	}
	made := append([]string{moment}, names...)
	wants := append(b.wants(lower), shared(source))
	for _, name := range made {
		wants = append(wants, exclusive(name))
	}
	unlock, err := b.lock(ctx, wants...)
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range made {
		if err := b.clearNotes(ctx, name); err != nil {
			return err
		}
	}
	is, err := b.isOver(ctx, source, lower)
	switch {
	case err != nil:
		return err
	case is:
		return b.forkShared(ctx, source, made, lower, opts)
	case opts.RootStyle == cowcommon.SharedRoot:
		return fault.New(errdefs.ErrNotImplemented, "a fork can have a shared root only if its source has")
	}
	return cowcommon.Fork(ctx, b.Backend, source, moment, names, opts)
}

// isOver reports whether a volume is shared over lower, as its note said before the caller locked both. "" is no lower. Returns
// errFolding or errStyleChanged if the caller has to begin again.
func (b *Backend) isOver(ctx context.Context, name, lower string) (bool, error) {
	s, found, err := b.look(ctx, name)
	switch {
	case err != nil:
		return false, err
	case s == stateFolding:
		return false, errFolding
	case s == stateNone && lower != "": // the note is outdated, and nobody changes the style while the caller has the lock
		if err := b.forgetOutdated(ctx, name); err != nil {
			return false, err
		}
		return false, errStyleChanged
	case found != lower:
		return false, errStyleChanged
	}
	return s == stateShared, nil
}

// forkShared makes the moment, the first of made, and its clones. Each has the changes of source in an upper of its own. Before
// any of them is there, its note is. If forkShared fails, nothing is left.
func (b *Backend) forkShared(ctx context.Context, source string, made []string, lower string, opts cowcommon.VolumeOptions) error {
	moment, names := made[0], made[1:]
	for _, name := range made {
		err := b.checkFree(ctx, name) // the note would be about the volume of that name
		if err == nil && strings.Contains(name, ":") {
			err = errColon
		}
		if err != nil {
			return fault.Wrap("clone volume", name, err)
		}
	}
	err := b.noteAll(made, lower)
	if err == nil {
		err = cowcommon.Fork(ctx, b.Backend, source, moment, names, plain(opts))
	}
	if err == nil && opts.RootStyle == cowcommon.SnapshotRoot {
		if err = b.foldAll(ctx, names); err != nil {
			for _, name := range slices.Backward(made) {
				err = errors.Join(err, b.Backend.Remove(b.ctx, name))
			}
		}
	}
	if err != nil {
		err = errors.Join(err, b.forgetGone(b.ctx, made))
	}
	return err
}

// noteAll notes that volumes which are about to be cloned may be shared over lower.
func (b *Backend) noteAll(names []string, lower string) error {
	for _, name := range names {
		if err := b.index.put(name, lower); err != nil {
			return err
		}
	}
	if b.cloneSyncs {
		return nil
	}
	return b.index.sync()
}

// foldAll folds volumes, which the caller has locked.
func (b *Backend) foldAll(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := b.foldLocked(ctx, name); err != nil {
			return fault.Wrap("fold volume", name, err)
		}
	}
	return nil
}

// CheckWhole implements cowcommon.Forker. The changes of a shared volume are in it, and its lower is shared by the clones.
func (b *Backend) CheckWhole(ctx context.Context, name string) error {
	return cowcommon.CheckWhole(ctx, b.Backend, name)
}

// exchanger is a Backend over another that can exchange volumes.
type exchanger struct {
	*Backend
}

// Unwrap returns the Backend that all other interfaces are of.
func (e *exchanger) Unwrap() cowcommon.Backend { return e.Backend }

// Exchange implements cowcommon.Exchanger. Root styles stay with their volumes; but if both are shared, over different volumes,
// other gets SnapshotRoot. Returns fault.ErrInUse if one is the lower of shared volumes.
func (e *exchanger) Exchange(ctx context.Context, name, other string) error {
	err := untilSteady(ctx, func() error { return e.exchange(ctx, name, other) })
	return fault.WrapWith("exchange volume", name, "with "+other, err)
}

func (e *exchanger) exchange(ctx context.Context, name, other string) error {
	pair := [2]string{name, other}
	var lowers [2]string
	var wants []namelock.Want
	for i, n := range pair {
		var err error
		if lowers[i], err = e.index.lower(n); err != nil {
			return err
		}
		wants = append(wants, e.wants(lowers[i])...)
		wants = append(wants, exclusive(n))
	}
	unlock, err := e.lock(ctx, wants...)
	if err != nil {
		return err
	}
	defer unlock()
	for i, n := range pair {
		if lowers[i], err = e.prepareExchange(ctx, n, lowers[i]); err != nil {
			return err
		}
	}
	if lowers[0] != "" && lowers[1] != "" && lowers[0] != lowers[1] { // a name has one note, and both may have the name
		if err := e.foldLocked(ctx, other); err != nil {
			return err
		}
		lowers[1] = ""
	}
	return e.exchangeNoted(ctx, pair, lowers)
}

// prepareExchange ends a fold of a volume, which the caller has locked exclusively, and leaves no note of it but that of its lower.
// noted is that note, as it was before the lock.
func (e *exchanger) prepareExchange(ctx context.Context, name, noted string) (lower string, err error) {
	if now, err := e.index.lower(name); err != nil || now != noted {
		return "", cmp.Or(err, errStyleChanged)
	}
	if _, err := e.Backend.Backend.Stat(ctx, name); err != nil {
		return "", err
	}
	if err := e.checkNoUsers(ctx, name); err != nil {
		return "", err
	}
	s, lower, err := e.look(ctx, name)
	if err != nil {
		return "", err
	}
	if s == stateShared {
		e.unmountLeft(name)
	} else {
		if err := e.foldLocked(ctx, name); err != nil {
			return "", err
		}
		lower = ""
	}
	return lower, e.restoreLimit(ctx, name) // or fail: foldLocked goes on without
}

// exchangeNoted exchanges two volumes, of which each is shared over its lower in lowers, "" for none. Both names have the note
// until it is certain which of them needs it.
func (e *exchanger) exchangeNoted(ctx context.Context, pair, lowers [2]string) error {
	lower, spare := cmp.Or(lowers[0], lowers[1]), ""
	if lower != "" {
		for i, name := range pair {
			if lowers[i] == "" {
				spare = name
			}
			if err := e.index.add(name, lower); err != nil {
				return err
			}
		}
	}
	err := cowcommon.Exchange(ctx, e.Backend.Backend, pair[0], pair[1])
	switch {
	case spare == "":
		return err
	case errdefs.IsFailedPrecondition(err): // nothing has changed, unless the Backend could not undo it
		s, _, lookErr := e.look(ctx, spare)
		if lookErr != nil || s != stateNone {
			return errors.Join(err, lookErr)
		}
		return errors.Join(err, e.index.forget(spare))
	case err != nil:
		return err // a note too many says nothing
	case spare == pair[0]:
		spare = pair[1]
	default:
		spare = pair[0]
	}
	e.tryForget(spare, spare)
	return nil
}
