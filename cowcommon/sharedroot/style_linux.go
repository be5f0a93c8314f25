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
	"github.com/cowshed/cowshed/internal/treeat"
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

// inspectDir tells the state of a volume whose tree is in a directory, and its lower.
func (b *Backend) inspectDir(name, dir string) (s state, lower string, err error) {
	noted, err := b.index.lower(name)
	if err != nil || noted == "" {
		return stateNone, "", err
	}
	root, err := openRoot(dir)
	if err != nil {
		return stateNone, "", err
	}
	defer root.Close()
	return inspectNoted(root, noted)
}

// inspectNoted tells the state of the volume whose root is open, and its lower. Without a note about the volume, a mark in its
// tree was made by somebody else, such as a privileged container.
func inspectNoted(root *os.File, noted string) (s state, lower string, err error) {
	s, lower, err = inspect(root)
	if err == nil && s == stateShared && lower != noted {
		err = fault.New(errdefs.ErrDataLoss, "its tree names volume %s as its lower, and the home names %s", treeat.Quote(lower), noted)
	}
	if s == stateNone {
		noted = "" // outdated
	}
	return s, noted, err
}

// look tells the state of a volume, and its lower.
func (b *Backend) look(ctx context.Context, name string) (s state, lower string, err error) {
	noted, err := b.index.lower(name)
	if noted == "" || err != nil {
		return stateNone, "", err // without a mount
	}
	err = b.peek(ctx, name, func(root *os.File) (err error) {
		s, lower, err = inspectNoted(root, noted)
		return err
	})
	return s, lower, err
}

// peek calls do with the root of the volume itself, without an overlay. It is no use of the volume.
func (b *Backend) peek(ctx context.Context, name string, do func(root *os.File) error) error {
	if in, ok := b.Backend.(inner); ok {
		return in.Peek(ctx, name, do)
	}
	return b.hold(ctx, name, func(dir string) error {
		root, err := openRoot(dir)
		if err != nil {
			return err
		}
		return errors.Join(do(root), root.Close())
	})
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
	return fault.Wrap("set root style of volume", name, b.setRootStyle(ctx, name, style))
}

// fold makes a volume that nobody uses one of style snapshot, and its tree durable. A volume that is not shared stays as
// it is. Returns errdefs.ErrFailedPrecondition if the volume is in use, or if it was sealed with its shared root.
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
	if err := b.foldThen(ctx, name, func(root *os.File) error { return unix.Syncfs(int(root.Fd())) }); err != nil {
		return err
	}
	b.tryForget(name, name)
	return nil
}

// foldThen folds a volume, which the caller has locked, and then calls do with its root. The note about the volume is to go
// when its tree is durable.
func (b *Backend) foldThen(ctx context.Context, name string, do func(root *os.File) error) error {
	noted, err := b.index.lower(name)
	if err != nil || noted == "" {
		return errors.Join(err, b.tryRestoreLimit(ctx, name))
	}
	err = b.foldUnlimited(ctx, name, func() error {
		return b.Alone(ctx, name, func(root *os.File) error {
			s, _, err := inspect(root)
			if err == nil && s != stateNone {
				err = fold(ctx, root, func() error { return b.checkNotMounted(root.Name(), name) })
			}
			if err != nil {
				return err
			}
			return do(root)
		})
	})
	if errors.Is(err, fault.ErrSealed) {
		if s, _, lookErr := b.look(ctx, name); lookErr != nil || s != stateNone {
			return errors.Join(err, lookErr)
		}
		return b.peek(ctx, name, do) // it was folded before
	}
	return err
}

// Alone calls do with the open root of a writable volume that nobody uses. It first unmounts a left-over root. Others wait for its end
// before they use the volume. Returns fault.ErrInUse if somebody uses the volume, and fault.ErrSealed if it is sealed.
func (b *Backend) Alone(ctx context.Context, name string, do func(root *os.File) error) error {
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
