package zfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// state is what a volume is for those who would use it. docs/architecture.md, "The states of a volume", draws them.
// While a claim moves a volume from one state to another it is sealing, thawing or doomed, and nobody can use it.
type state int

const (
	writable state = iota
	sealed         // there is the snapshot of sealName
	gone
)

// sealOf is the full name of the snapshot that seals a volume.
func (b *Backend) sealOf(name string) string { return b.datasetOf(name) + "@" + sealName }

// isSealed asks the kernel. The answer holds for as long as the caller claims the volume, relies on it or has its lock.
func (b *Backend) isSealed(name string) (bool, error) { return b.zfs.exists(b.sealOf(name)) }

// move moves a claimed volume to a state, and is all that does. moved is false if it was in that state before, or stays
// as it was. errdefs.ErrFailedPrecondition: it is to be sealed and is mounted, or it is to be gone and something is in
// the way.
func (b *Backend) move(ctx context.Context, c *claim, to state) (moved bool, err error) {
	if to == gone {
		return true, b.destroyClaimed(ctx, c)
	}
	is, err := b.isSealed(c.name)
	if err != nil || is == (to == sealed) {
		return false, err
	}
	if to == sealed {
		err = b.freeze(ctx, c)
	} else {
		err = b.thaw(ctx, c)
	}
	return err == nil, err
}

// freeze takes the snapshot that seals a claimed volume.
func (b *Backend) freeze(ctx context.Context, c *claim) error {
	if err := b.checkNotMounted(c.name); err != nil {
		return err
	}
	err := b.snapshot(ctx, c.name, b.sealOf(c.name), c.file(), func(ctx context.Context) error { return b.thaw(ctx, c) })
	if err == nil {
		b.volumes.update(c.name, func(d *dataset) { d.sealed = true })
	}
	return err
}

// thaw undoes the sealing of a claimed volume, unless it has clones or is in view.
func (b *Backend) thaw(ctx context.Context, c *claim) error {
	err := b.discard(ctx, b.sealOf(c.name))
	b.volumes.doubt()
	if isCommandError(err) {
		b.log.Debug("zfs: stays sealed", "volume", c.name, "error", err)
		return nil
	}
	return err
}

// Seal takes the snapshot that makes a volume sealed: from then on it is mounted read-only.
func (b *Backend) Seal(ctx context.Context, name string) error {
	_, settle, err := b.seal(ctx, name)
	if err == nil {
		err = settle(nil)
	}
	if err != nil {
		return fmt.Errorf("zfs: seal %s: %w", name, b.nameHolders(ctx, err, name))
	}
	return nil
}

// seal seals a volume, unless it is sealed, and returns the snapshot that does. Nobody else can change the volume as a
// whole until the caller calls settle, with the error for which the sealing is to be undone.
// errdefs.ErrFailedPrecondition: it is mounted.
func (b *Backend) seal(ctx context.Context, name string) (seal string, settle func(error) error, err error) {
	if _, err := b.volume(ctx, name); err != nil {
		return "", nil, err
	}
	done, err := b.rely(ctx, name)
	if err != nil {
		return "", nil, err
	}
	is, err := b.isSealed(name)
	if err == nil && is {
		return b.sealOf(name), func(err error) error { return b.after(err, done) }, nil
	}
	if err := errors.Join(err, done()); err != nil {
		return "", nil, err
	}
	c, err := b.claim(ctx, name)
	if err != nil {
		return "", nil, err
	}
	moved, err := b.move(ctx, c, sealed)
	if err != nil {
		return "", nil, errors.Join(err, c.done(err))
	}
	return b.sealOf(name), func(err error) error {
		if err == nil || !moved {
			return c.done(err)
		}
		return b.after(err, func() error {
			_, err := b.move(context.WithoutCancel(ctx), c, writable)
			return errors.Join(err, c.done(err))
		})
	}, nil
}

// originFor returns the snapshot that a clone of source is to be made from: the one that seals it, taken now
// if need be, or one for this clone alone while somebody has source mounted. The caller calls settle with
// the error for which there is no clone; what was taken for it is then undone.
func (b *Backend) originFor(ctx context.Context, source string) (origin string, settle func(error) error, err error) {
	origin, settle, err = b.seal(ctx, source)
	if errdefs.IsFailedPrecondition(err) {
		return b.snapshotInUse(ctx, source)
	}
	return origin, settle, err
}

// snapshotInUse takes a snapshot of a volume that somebody has mounted, for one clone.
func (b *Backend) snapshotInUse(ctx context.Context, source string) (_ string, settle func(error) error, err error) {
	origin := b.datasetOf(source) + "@" + temporaryName(clonePrefix)
	discard := func(ctx context.Context) error { return b.discard(ctx, origin) }
	if err := b.snapshot(ctx, source, origin, nil, discard); err != nil {
		return "", nil, err
	}
	return origin, func(err error) error {
		if err == nil {
			return nil
		}
		return b.after(err, func() error { return discard(ctx) })
	}, nil
}

// destroyClaimed destroys a claimed volume's dataset and the snapshots on it that are Cowshed's.
func (b *Backend) destroyClaimed(ctx context.Context, c *claim) error {
	dead, err := b.endDeadViews(c.name)
	if err != nil {
		return err
	}
	d, _, err := b.volumes.get(ctx, c.name) // as it is now that nobody else can change it
	if err != nil {
		return err
	}
	origin := d.origin
	if origin == "" {
		origin = "-"
	}
	if err := b.destroy(ctx, c, origin, dead.snapshots); err != nil {
		b.volumes.invalidate()
		return err
	}
	b.volumes.drop(c.name)
	if err := dead.forget(); err != nil { // the volume is gone all the same
		b.log.Warn("zfs: locks of views are left over", "volume", c.name, "error", err)
	}
	return nil
}

// destroy destroys a claimed volume's dataset, and waits a while for it if it is busy.
func (b *Backend) destroy(ctx context.Context, c *claim, origin string, dead []string) error {
	dataset := b.datasetOf(c.name)
	var result destroyed
	err := whileBusy(ctx, busyFor, func() (busy bool, err error) {
		result, err = b.runDestroy(ctx, c, origin, dead)
		return err == nil && result.Errno == unix.EBUSY && len(result.Blockers) == 0, err
	})
	switch {
	case err != nil:
		return err
	case result.Errno == 0, result.Errno == unix.ENOENT:
		return nil
	case len(result.Blockers) > 0:
		return fmt.Errorf("%s depend on it: remove them first: %w", result.names(), errdefs.ErrFailedPrecondition)
	case result.Errno == unix.EBUSY:
		return b.busy(result.Errno, result.Busy)
	}
	return fmt.Errorf("destroy %s: %w", dataset, result.Errno)
}
