package btrfs

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/sealing"
)

// seals gives package sealing access to the volumes. A sealed volume is a subvolume with the read-only flag.
func (b *Backend) seals() sealing.Volumes[*subvolume] {
	use := func(ctx context.Context, name string) (v sealing.Held[*subvolume], err error) {
		dir, err := b.acquire(ctx, name, inuse.Brief)
		if err == nil {
			v = sealing.Held[*subvolume]{Volume: dir, State: dir.state(), Done: func(error) error { return b.release(name, inuse.Brief) }}
		}
		return v, err
	}
	return sealing.Volumes[*subvolume]{
		Use: use,
		Claim: func(ctx context.Context, name string) (v sealing.Held[*subvolume], err error) {
			c, err := b.claim(ctx, name)
			if err == nil {
				v = sealing.Held[*subvolume]{Volume: c.subvolume, State: c.state(), Done: func(error) error { return c.done() }, Move: c.move}
			}
			return v, err
		},
		CloneInUse: func(ctx context.Context, name string, clone func(*subvolume) error) error {
			v, err := use(ctx, name)
			if err != nil {
				return err
			}
			return errors.Join(clone(v.Volume), v.Done(nil))
		},
		After: func(_ error, f func() error) error { return f() }, // a failed call to the kernel has ended
	}
}

func (s *subvolume) state() sealing.State {
	if s.info.ReadOnly {
		return sealing.Sealed
	}
	return sealing.Writable
}

// claimed is a volume that the caller has for itself until it calls done. Only move changes the state of a volume.
type claimed struct {
	*subvolume
	b       *Backend
	name    string
	release func()
}

func (c *claimed) done() error {
	defer c.release() // after Close has released the lock
	return c.Close()
}

// move brings the volume into another state, as sealing.Held describes. A doomed volume stays doomed.
func (c *claimed) move(_ context.Context, to sealing.State) (changed bool, err error) {
	if to == sealing.Doomed {
		return true, c.doom()
	}
	readOnly := to == sealing.Sealed
	if c.info.ReadOnly == readOnly {
		return false, nil
	}
	if err := c.forgetReceived(); err != nil {
		return false, err
	}
	if err := c.setReadOnly(readOnly); err != nil {
		return false, err // the kernel has undone the change
	}
	c.info.ReadOnly = readOnly
	return true, nil
}

// forgetReceived deletes the received UUID of a volume that was made writable after it was received. It must not be read-only with
// that UUID, nor may a snapshot: its content is perhaps another by now.
func (s *subvolume) forgetReceived() error {
	if s.info.ReadOnly || s.info.ReceivedUUID == (btrfsctl.UUID{}) {
		return nil
	}
	if err := btrfsctl.SetReceived(s.fd(), btrfsctl.UUID{}, 0); err != nil {
		return fmt.Errorf("delete received UUID: %w", err)
	}
	return nil
}

func (c *claimed) setReadOnly(readOnly bool) error {
	if err := c.b.insist(func() error { return btrfsctl.SetReadOnly(c.fd(), readOnly) }); err != nil {
		return fmt.Errorf("set read-only=%t: %w", readOnly, err)
	}
	return nil
}

// Seal makes a volume that nobody uses read-only for good, and its content durable. Sealing it twice does nothing.
// Returns errdefs.ErrFailedPrecondition if the volume is in use, and leaves it as it was.
func (b *Backend) Seal(ctx context.Context, name string) error {
	err := b.seals().Rely(ctx, name, func(v *subvolume, before sealing.State) error {
		if before == sealing.Sealed {
			return nil
		}
		return unix.Syncfs(v.fd())
	})
	return fault.Wrap("seal volume", name, err)
}
