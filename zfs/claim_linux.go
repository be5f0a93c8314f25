package zfs

import (
	"context"
	"errors"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
)

// claim is a volume that nobody has mounted, or the name of one that is to be made, for one caller alone.
type claim struct {
	b       *Backend
	name    string
	lock    volumeLock
	release func()
}

// claim takes a volume that nobody has mounted for this caller alone, so that it can be changed as a whole;
// whoever wants to use it waits. The caller calls done. errdefs.ErrFailedPrecondition: it is in use, here or
// in another process.
func (b *Backend) claim(ctx context.Context, name string) (_ *claim, err error) {
	if err := b.zfs.checkPool(); err != nil { // who has it may not get on
		return nil, err
	}
	releaseMount, err := b.mounts.Claim(ctx, name)
	if err != nil {
		return nil, err
	}
	releaseUse, err := b.relied.Claim(ctx, name)
	if err != nil {
		releaseMount()
		return nil, err
	}
	c := &claim{b: b, name: name, release: func() { releaseUse(); releaseMount() }}
	lock, ok, err := b.tryLockVolume(name)
	if err == nil && !ok {
		err = inuse.ByAnotherProcess(name)
	}
	if err != nil {
		c.release()
		return nil, err
	}
	c.lock = lock
	// Nobody holds the lock, so whoever has mounted it is gone.
	if err := unmountPoint(b.mountpoint(name), false); err != nil && !errors.Is(err, unix.EBUSY) {
		return nil, errors.Join(err, c.done(nil))
	}
	return c, nil
}

// claimNew takes the name of a volume that is to be made. errdefs.ErrAlreadyExists: it is taken.
func (b *Backend) claimNew(ctx context.Context, name string) (*claim, error) {
	if err := b.checkFree(ctx, name); err != nil {
		return nil, err
	}
	c, err := b.claim(ctx, name)
	if errdefs.IsFailedPrecondition(err) { // only what is there, or is being made, is in use
		return nil, fault.As(errdefs.ErrAlreadyExists, err)
	}
	if err != nil {
		return nil, err
	}
	if err := b.checkFree(ctx, name); err != nil { // who had it may have made it
		return nil, errors.Join(err, c.done(nil))
	}
	return c, nil
}

// done gives up the claim, once nothing is under way any more that err says was left to itself.
func (c *claim) done(err error) error {
	return c.b.after(err, func() error {
		err := c.lock.unlock(nil)
		c.release()
		return err
	})
}

// file is what zfs processes inherit that work on the volume, so that it stays locked if this process is killed.
func (c *claim) file() []*os.File { return []*os.File{c.lock.File} }

// rely uses a volume for as long as one step takes: until the caller calls done nobody changes it as a whole. Whoever
// does so now is waited for.
func (b *Backend) rely(ctx context.Context, name string) (done func() error, err error) {
	if err := b.zfs.checkPool(); err != nil { // who changes it may not get on
		return nil, err
	}
	_, err = b.relied.Acquire(ctx, name, inuse.Brief, func() (volumeLock, error) { return b.lockShared(ctx, name) })
	if err != nil {
		return nil, err
	}
	return func() error {
		return b.relied.Release(name, inuse.Brief, func(lock volumeLock) error { return lock.unlock(nil) })
	}, nil
}
