package zfs

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
)

// Alone calls do with the open root of a writable volume that nobody uses. Others wait for its end before they use the
// volume. Returns fault.ErrInUse if somebody uses the volume, and fault.ErrSealed if it is sealed.
func (b *Backend) Alone(ctx context.Context, name string, do func(root *os.File) error) error {
	return fault.Wrap("claim volume", name, b.nameHolders(ctx, b.alone(ctx, name, do), name))
}

func (b *Backend) alone(ctx context.Context, name string, do func(root *os.File) error) (err error) {
	if _, err := b.volume(ctx, name); err != nil {
		return err
	}
	c, err := b.claim(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	isSealed, err := b.isSealed(ctx, name)
	if err != nil {
		return err
	}
	if isSealed {
		return fault.ErrSealed
	}
	if err := b.checkNotMounted(ctx, name); err != nil {
		return err
	}
	dir := b.mountpoint(name)
	unmount := func() error {
		ctx, cancel := b.ending()
		defer cancel()
		return b.unmountAt(ctx, dir, false)
	}
	if err := b.mountWaiting(ctx, b.datasetOf(name), dir, 0, ""); err != nil {
		return errors.Join(err, b.after(err, unmount))
	}
	defer func() { err = errors.Join(err, unmount()) }()
	root, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}

// Peek calls do with the open root of a volume. Claims of this process wait for its end. Another process finds the volume in
// use.
func (b *Backend) Peek(ctx context.Context, name string, do func(root *os.File) error) error {
	return fault.Wrap("look at volume", name, b.peek(ctx, name, do))
}

func (b *Backend) peek(ctx context.Context, name string, do func(root *os.File) error) (err error) {
	if err := b.mount(ctx, name, "", inuse.Brief); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.unmount(name, inuse.Brief)) }()
	root, err := os.OpenFile(b.mountpoint(name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}
