package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// errStyleChanged says that somebody has changed the style of a volume since its note was read, without a lock.
var errStyleChanged = errors.New("its root style has changed meanwhile")

// untilSteady calls do, again if it has found that the style has changed.
func untilSteady(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !errors.Is(err, errStyleChanged) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// errColon says that a name cannot be in the options of an overlay.
var errColon = fault.New(errdefs.ErrInvalidArgument, "a volume with a colon in its name cannot have a shared root, nor be the lower of one")

// Clone makes a volume of the style that the options name. The shared clone of a shared source has the lower of its source.
// Returns fault.ErrInUse if a shared clone is asked for of another source that is writable and in use. A crash may leave a
// clone in the other style than asked for. The tree is the same.
func (b *Backend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	return fault.WrapWith("clone volume", name, fault.From(source), b.clone(ctx, name, source, opts))
}

func (b *Backend) clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	for _, id := range []string{name, source} {
		if err := cowcommon.CheckID(id); err != nil {
			return err
		}
	}
	if opts.RootStyle == cowcommon.SharedRoot {
		if err := b.canShare(name, source); err != nil {
			return err
		}
	}
	return untilSteady(ctx, func() error {
		return b.untilFolded(ctx, source, func() error { return b.tryClone(ctx, name, source, opts) })
	})
}

func (b *Backend) tryClone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	lower, err := b.index.lower(source)
	if err != nil {
		return err
	}
	if lower != "" && opts.RootStyle != cowcommon.SharedRoot {
		switch err := b.fold(ctx, source); {
		case err == nil:
			lower = ""
		case !errors.Is(err, fault.ErrInUse) && !errors.Is(err, fault.ErrSealed):
			return err
		}
	}
	return b.cloneLocked(ctx, name, source, lower, opts)
}

// canShare reports whether a clone of source can be shared.
func (b *Backend) canShare(name, source string) error {
	if _, ok := b.Backend.(inner); !ok && !b.opts.ReadOnly {
		return fault.New(errdefs.ErrNotImplemented, "volumes of a %T cannot have shared roots", b.Backend)
	}
	if _, err := b.supported(); err != nil {
		return err
	}
	if strings.Contains(name+source, ":") {
		return errColon
	}
	return nil
}

// cloneLocked clones source, which is shared over lower unless that is "".
func (b *Backend) cloneLocked(ctx context.Context, name, source, lower string, opts cowcommon.VolumeOptions) error {
	wants := append(b.wants(lower), exclusive(name), shared(source))
	unlock, err := b.lock(ctx, wants...)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.clearNotes(ctx, name); err != nil {
		return err
	}
	if lower != "" {
		return b.cloneShared(ctx, name, source, lower, opts)
	}
	src, err := b.Backend.Stat(ctx, source)
	if err != nil {
		return err
	}
	switch s, _, err := b.look(ctx, source); {
	case err != nil:
		return err
	case s == stateFolding:
		return errFolding
	case s == stateShared:
		return errStyleChanged
	}
	if opts.RootStyle != cowcommon.SharedRoot {
		return b.Backend.Clone(ctx, name, source, plain(opts))
	}
	if !src.Sealed {
		if err := b.sealLower(ctx, name, source); err != nil {
			return err
		}
	}
	if err := b.cloneNoted(ctx, name, source, source, opts); err != nil {
		return err
	}
	return b.share(ctx, name, source)
}

// sealLower seals a volume before a shared clone is made, so that the clone has its last state. Returns fault.ErrInUse if the
// volume goes on changing.
func (b *Backend) sealLower(ctx context.Context, clone, name string) error {
	if err := b.checkFree(ctx, clone); err != nil {
		return err
	}
	err := cowcommon.Seal(ctx, b.Backend, name)
	if errors.Is(err, fault.ErrInUse) {
		return fault.As(fault.ErrInUse, fmt.Errorf("a clone can share only a volume that no process can write to: %w", err))
	}
	return err
}

// checkFree checks that no volume has a name. Returns errdefs.ErrAlreadyExists if there is one.
func (b *Backend) checkFree(ctx context.Context, name string) error {
	_, err := b.Backend.Stat(ctx, name)
	if isGone(err) {
		return nil
	}
	if err == nil {
		err = errdefs.ErrAlreadyExists
	}
	return err
}

// cloneNoted clones a volume, and notes before that the clone may be shared over lower.
func (b *Backend) cloneNoted(ctx context.Context, name, source, lower string, opts cowcommon.VolumeOptions) error {
	// The note would be about the volume of that name.
	if err := b.checkFree(ctx, name); err != nil {
		return err
	}
	err := b.index.put(name, lower)
	if err == nil && !b.cloneSyncs {
		err = b.index.sync()
	}
	if err == nil {
		err = b.Backend.Clone(ctx, name, source, plain(opts))
	}
	if err != nil {
		// A clone whose making could not be stopped is shared if its source is.
		if _, statErr := b.Backend.Stat(b.ctx, name); isGone(statErr) {
			err = errors.Join(err, b.index.forget(name))
		}
		return err
	}
	return nil
}

// share gives a fresh clone of a sealed volume a shared root. The caller has the locks of both. It has told nobody of the
// clone, which therefore is not looked for among all mounts. If share fails, there is no clone.
func (b *Backend) share(ctx context.Context, name, lower string) error {
	err := b.hold(ctx, name, func(dir string) error {
		root, err := openRoot(dir)
		if err != nil {
			return err
		}
		return errors.Join(prepare(root, lower), root.Close())
	})
	if err != nil {
		err = errors.Join(err, b.Backend.Remove(b.ctx, name), b.forgetGone(b.ctx, []string{name}))
	}
	return err
}

// plain are the options for the Backend inside.
func plain(opts cowcommon.VolumeOptions) cowcommon.VolumeOptions {
	opts.RootStyle = cowcommon.SnapshotRoot
	return opts
}

// cloneShared clones a shared volume together with its upper: the clone is shared over the same lower. A source that nobody
// uses is sealed, and stays shared. If cloneShared fails, there is no clone.
func (b *Backend) cloneShared(ctx context.Context, name, source, lower string, opts cowcommon.VolumeOptions) error {
	if _, err := b.isOver(ctx, source, lower); err != nil {
		return err
	}
	if err := b.cloneNoted(ctx, name, source, lower, opts); err != nil || opts.RootStyle == cowcommon.SharedRoot {
		return err
	}
	if err := b.foldLocked(ctx, name); err != nil {
		return errors.Join(err, b.Backend.Remove(b.ctx, name), b.index.forget(name))
	}
	return nil
}
