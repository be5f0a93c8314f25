package zfs

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/namelock"
)

// claim is a claimed volume, or the claimed name of a volume that is to be made.
type claim struct {
	b       *Backend
	name    string
	lock    namelock.Lock
	release func()
}

// claim claims a volume that no Backend uses, so that the caller can change it as a whole. Users in this and other
// processes wait until the caller calls done. Returns errdefs.ErrFailedPrecondition if the volume is in use, here or in
// another process. It does not detect mounts by other programs: see checkNotMounted.
func (b *Backend) claim(ctx context.Context, name string) (_ *claim, err error) {
	waiting, cancel, err := b.zfs.waiting(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	releaseMount, err := b.mounts.Claim(waiting, name)
	if err != nil {
		return nil, err
	}
	releaseUse, err := b.relied.Claim(waiting, name)
	if err != nil {
		releaseMount()
		return nil, err
	}
	c := &claim{b: b, name: name, release: func() { releaseUse(); releaseMount() }}
	lock, ok, err := b.claimVolume(waiting, name)
	if err == nil && !ok {
		err = inuse.ByAnotherProcess(name)
	}
	if err != nil {
		c.release()
		return nil, err
	}
	c.lock = lock
	// Nobody holds the lock, so a mount there is left from a process that is gone.
	if err := b.unmountAt(ctx, b.mountpoint(name), false); err != nil && !errors.Is(err, unix.EBUSY) {
		return nil, errors.Join(err, c.done(err))
	}
	return c, nil
}

// claimNew claims the name of a volume that is to be made. Returns errdefs.ErrAlreadyExists if the name is taken.
func (b *Backend) claimNew(ctx context.Context, name string) (*claim, error) {
	if err := b.checkFree(ctx, name); err != nil {
		return nil, err
	}
	c, err := b.claim(ctx, name)
	if errdefs.IsFailedPrecondition(err) { // only a volume that exists or is being made is in use
		return nil, fault.As(errdefs.ErrAlreadyExists, err)
	}
	if err != nil {
		return nil, err
	}
	if err := b.checkFree(ctx, name); err != nil { // the last holder of the claim may have made it
		return nil, errors.Join(err, c.done(nil))
	}
	return c, nil
}

// done gives up the claim. If err says that a call was left to itself, done returns at once. The claim then ends when
// that call has ended and its outcome is settled.
func (c *claim) done(err error) error {
	return c.b.after(err, func() error {
		err := c.lock.Unlock(nil)
		c.release()
		return err
	})
}

// rely uses a volume for one step: until the caller calls done, nobody changes the volume as a whole. It waits while
// somebody does.
func (b *Backend) rely(ctx context.Context, name string) (done func() error, err error) {
	waiting, cancel, err := b.zfs.waiting(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	_, err = b.relied.Acquire(waiting, name, inuse.Brief, func() (namelock.Lock, error) { return b.shareVolume(waiting, name) })
	if err != nil {
		return nil, err
	}
	return func() error {
		return b.relied.Release(name, inuse.Brief, func(lock namelock.Lock) error { return lock.Unlock(nil) })
	}, nil
}
