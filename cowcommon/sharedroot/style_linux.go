package sharedroot

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// errFolding says that a fold of the volume has begun and has to be completed first.
var errFolding = errors.New("a change of its root style has not ended")

// isGone reports whether a volume has been removed meanwhile.
func isGone(err error) bool { return errdefs.IsNotFound(err) }

// openRoot opens the root directory of a tree.
func openRoot(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// inspectDir tells the state of the tree in a directory. A lower that cannot be the name of a volume is an error.
func inspectDir(dir string) (s state, lower string, err error) {
	root, err := openRoot(dir)
	if err != nil {
		return stateNone, "", err
	}
	defer root.Close()
	s, lower, err = inspect(root)
	if err == nil && s == stateShared {
		err = cowcommon.CheckID(lower)
	}
	return s, lower, err
}

// look tells the state of a volume.
func (b *Backend) look(ctx context.Context, name string) (s state, lower string, err error) {
	err = b.hold(ctx, name, func(dir string) (err error) {
		s, lower, err = inspectDir(dir)
		return err
	})
	return s, lower, err
}

// peek is look, which spares the mount where there is no note about the volume and a mount would be needed to look.
func (b *Backend) peek(ctx context.Context, name string) (s state, lower string, err error) {
	if !b.keepsPaths {
		if noted, err := b.index.lower(name); noted == "" || err != nil {
			return stateNone, "", err
		}
	}
	return b.look(ctx, name)
}

// hold calls do while the volume itself, without an overlay, is mounted.
func (b *Backend) hold(ctx context.Context, name string, do func(dir string) error) error {
	dir, err := b.Backend.Mount(ctx, name, "")
	if err != nil {
		return err
	}
	return errors.Join(do(dir), b.Backend.Unmount(b.ctx, name))
}

// untilFolded calls do, again after a fold that it has found begun.
func (b *Backend) untilFolded(ctx context.Context, name string, do func() error) error {
	for {
		err := do()
		if !errors.Is(err, errFolding) {
			return err
		}
		if err := b.fold(ctx, name); err != nil {
			return err
		}
	}
}

// SetRootStyle implements cowcommon.RootStyler.
func (b *Backend) SetRootStyle(ctx context.Context, name string, style cowcommon.RootStyle) error {
	return fault.Wrap("set root style of volume", name, b.setRootStyle(ctx, name, b.orDefault(style)))
}

func (b *Backend) orDefault(style cowcommon.RootStyle) cowcommon.RootStyle {
	if style == cowcommon.DefaultRoot {
		style = b.opts.Default
	}
	if style == cowcommon.DefaultRoot {
		style = cowcommon.SnapshotRoot
	}
	return style
}

// fold makes a volume that nobody uses one of style snapshot, and its tree durable. A volume that is not shared stays as
// it is. Returns errdefs.ErrFailedPrecondition if the volume is in use.
func (b *Backend) fold(ctx context.Context, name string) error {
	unlock, err := b.lock(ctx, exclusive(name))
	if err != nil {
		return err
	}
	defer unlock()
	return b.foldLocked(ctx, name)
}

// foldLocked is fold for a caller that has the lock of the volume.
func (b *Backend) foldLocked(ctx context.Context, name string) error {
	err := b.foldUnlimited(ctx, name, func() error {
		return b.alone(ctx, name, func(root *os.File) error {
			s, _, err := inspect(root)
			if err != nil || s == stateNone {
				return err
			}
			if err := fold(ctx, root); err != nil {
				return err
			}
			return unix.Syncfs(int(root.Fd()))
		})
	})
	if err != nil && !errors.Is(err, fault.ErrSealed) { // a sealed volume was folded before
		return err
	}
	return b.index.forget(name)
}

// alone calls do with the open root of a volume that nobody uses, not even as a left-over mount.
func (b *Backend) alone(ctx context.Context, name string, do func(root *os.File) error) error {
	if b.opts.ReadOnly {
		return fault.New(cowcommon.ErrReadOnly, "%w", errFolding)
	}
	in, ok := b.Backend.(inner)
	if !ok {
		return fault.New(errdefs.ErrNotImplemented, "volumes of a %T cannot have shared roots", b.Backend)
	}
	b.unmountLeft(name)
	return in.Alone(ctx, name, do)
}
