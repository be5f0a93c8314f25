package btrfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/inuse"
)

// state is what can be done with a volume that nobody uses. docs/architecture.md draws the states.
type state uint8

const (
	writable state = iota
	sealed
	doomed // hidden from everybody, and about to be destroyed
)

// claimed is a volume that the caller has for itself until it calls done, and the only way to change its state.
type claimed struct {
	*subvolume
	b       *Backend
	name    string
	release func()
}

func (c *claimed) done() error {
	defer c.release() // once the lock is free
	return c.Close()
}

// state is the volume's state, which nobody else can change.
func (c *claimed) state() state {
	if c.info.ReadOnly {
		return sealed
	}
	return writable
}

// move brings the volume into another state. A doomed one stays that.
func (c *claimed) move(to state) error {
	if to == doomed {
		return c.doom()
	}
	readOnly := to == sealed
	if err := c.b.insist(func() error { return btrfsctl.SetReadOnly(c.fd(), readOnly) }); err != nil {
		return fmt.Errorf("set read-only=%t: %w", readOnly, err)
	}
	c.info.ReadOnly = readOnly
	return nil
}

// Seal makes a volume that nobody uses read-only for good, and what it holds survive a power cut. Sealing it
// twice does nothing. errdefs.ErrFailedPrecondition: it is in use, and was not changed.
func (b *Backend) Seal(ctx context.Context, name string) error {
	err := b.withSealed(ctx, name, func(v *subvolume, before state) error {
		if before == sealed {
			return nil
		}
		return unix.Syncfs(v.fd())
	})
	if err != nil {
		return fmt.Errorf("btrfs: seal %s: %w", name, err)
	}
	return nil
}

// withSealed calls rely with a volume that is sealed, and was in the state before. Nobody can undo the seal until rely
// returns. A seal that was set for it is undone if it fails.
//
// errdefs.ErrFailedPrecondition: the volume is writable and in use, a descriptor that is open for writing would go on
// writing. rely has not been called.
func (b *Backend) withSealed(ctx context.Context, name string, rely func(v *subvolume, before state) error) error {
	used, err := b.acquire(ctx, name, inuse.Brief)
	if err != nil {
		return err
	}
	if used.info.ReadOnly {
		return errors.Join(rely(used, sealed), b.release(name, inuse.Brief))
	}
	if err := b.release(name, inuse.Brief); err != nil {
		return err
	}
	v, err := b.claim(ctx, name)
	if err != nil {
		return err
	}
	before := v.state() // another may have sealed it by now
	if err = v.move(sealed); err == nil {
		err = rely(v.subvolume, before)
	}
	if err != nil {
		err = errors.Join(err, v.move(before))
	}
	return errors.Join(err, v.done())
}

// withSource calls use with a volume that is to be cloned: sealed, as withSealed has it, or if somebody uses it as it
// is.
func (b *Backend) withSource(ctx context.Context, name string, use func(v *subvolume) error) error {
	called := false
	err := b.withSealed(ctx, name, func(v *subvolume, _ state) error {
		called = true
		return use(v)
	})
	if called || !errdefs.IsFailedPrecondition(err) {
		return err
	}
	used, err := b.acquire(ctx, name, inuse.Brief)
	if err != nil {
		return err
	}
	return errors.Join(use(used), b.release(name, inuse.Brief))
}
