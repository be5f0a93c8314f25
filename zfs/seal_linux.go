package zfs

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/poll"
	"github.com/cowshed/cowshed/internal/sealing"
	"github.com/cowshed/cowshed/internal/staging"
)

// seals gives package sealing access to the volumes. There, the value for a sealed volume or for the source of a clone
// is the full name of a snapshot.
func (b *Backend) seals() sealing.Volumes[string] {
	held := func(ctx context.Context, name string, done func(cause error) error) (v sealing.Held[string], err error) {
		v = sealing.Held[string]{Volume: b.sealOf(name), Done: done}
		is, err := b.isSealed(ctx, name)
		if is {
			v.State = sealing.Sealed
		}
		if err != nil {
			err = errors.Join(err, done(nil))
		}
		return v, err
	}
	return sealing.Volumes[string]{
		Use: func(ctx context.Context, name string) (v sealing.Held[string], err error) {
			if _, err := b.volume(ctx, name); err != nil {
				return v, err
			}
			done, err := b.rely(ctx, name)
			if err != nil {
				return v, err
			}
			return held(ctx, name, func(cause error) error { return b.after(cause, done) })
		},
		Claim: func(ctx context.Context, name string) (v sealing.Held[string], err error) {
			c, err := b.claim(ctx, name)
			if err != nil {
				return v, err
			}
			v, err = held(ctx, name, c.done)
			v.Move = c.move
			return v, err
		},
		CloneInUse: b.cloneInUse,
		After:      b.after,
	}
}

// cloneInUse takes a snapshot of a volume for one clone, and destroys the snapshot if cloning fails. It relies on the volume
// meanwhile: others could claim it, and destroy snapshots of it that have no clones.
func (b *Backend) cloneInUse(ctx context.Context, name string, clone func(origin string) error) (err error) {
	done, err := b.rely(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.after(err, done)) }()
	origin := b.datasetOf(name) + "@" + staging.Name(clonePrefix)
	discard := func(ctx context.Context) error { return b.discard(ctx, origin) }
	if err := b.snapshot(ctx, name, origin, discard); err != nil {
		return err
	}
	if err = clone(origin); err != nil {
		err = errors.Join(err, b.after(err, func() error { return discard(ctx) }))
	}
	return err
}

// sealOf is the full name of the snapshot that seals a volume.
func (b *Backend) sealOf(name string) string { return b.datasetOf(name) + "@" + sealName }

// isSealed asks the kernel whether a volume is sealed. The answer stays right while the caller claims the volume,
// relies on it or has its lock.
func (b *Backend) isSealed(ctx context.Context, name string) (bool, error) {
	return b.zfs.exists(ctx, b.sealOf(name))
}

// move brings the volume into another state, as sealing.Held describes it. Returns errdefs.ErrFailedPrecondition if the
// volume is to be sealed and is mounted, or if it is doomed and has dependents or users.
func (c *claim) move(ctx context.Context, to sealing.State) (changed bool, err error) {
	if to == sealing.Doomed {
		return true, c.b.destroyClaimed(ctx, c)
	}
	if to == sealing.Writable { // it undoes a step, so nobody cancels it
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.b.zfs.grace)
		defer cancel()
	}
	is, err := c.b.isSealed(ctx, c.name)
	if err != nil || is == (to == sealing.Sealed) {
		return false, err
	}
	if to == sealing.Sealed {
		err = c.b.freeze(ctx, c)
	} else {
		err = c.b.thaw(ctx, c)
	}
	return err == nil, err
}

// freeze takes the snapshot that seals a claimed volume.
func (b *Backend) freeze(ctx context.Context, c *claim) error {
	if err := b.checkNotMounted(ctx, c.name); err != nil {
		return err
	}
	err := b.snapshot(ctx, c.name, b.sealOf(c.name), func(ctx context.Context) error { return b.thaw(ctx, c) })
	if err == nil {
		b.volumes.update(c.name, func(d *dataset) { d.sealed = true })
	}
	return err
}

// thaw undoes the sealing of a claimed volume. A volume with clones or views stays sealed, without an error.
func (b *Backend) thaw(ctx context.Context, c *claim) error {
	err := b.discard(ctx, b.sealOf(c.name))
	b.volumes.doubt()
	if isRefused(err) {
		b.log.Debug("zfs: stays sealed", "volume", c.name, "error", err)
		return nil
	}
	return err
}

// Seal takes the snapshot that seals a volume. From then on the volume is mounted read-only.
func (b *Backend) Seal(ctx context.Context, name string) error {
	err := b.seals().Rely(ctx, name, func(string, sealing.State) error { return nil })
	return fault.Wrap("seal volume", name, b.nameHolders(ctx, err, name))
}

// destroyClaimed destroys a claimed volume's dataset and Cowshed's own snapshots of it, or sets the dataset aside if it
// has clones.
func (b *Backend) destroyClaimed(ctx context.Context, c *claim) error {
	dead, err := b.endDeadViews(ctx, c.name)
	if err != nil {
		return err
	}
	cloned, err := b.destroy(ctx, c, dead.snapshots)
	if err == nil && cloned {
		err = b.setAside(ctx, c)
	}
	if err != nil {
		b.volumes.invalidate()
		return err
	}
	if !cloned {
		b.volumes.drop(c.name)
	}
	if err := b.forgetViews(ctx, dead); err != nil { // the volume is gone nevertheless
		b.log.Warn("zfs: locks of views are left over", "volume", c.name, "error", err)
	}
	return nil
}

// destroy destroys a claimed volume's dataset, and waits a while if the dataset is busy. It changes nothing if only
// clones are in the way; cloned says so.
func (b *Backend) destroy(ctx context.Context, c *claim, dead []string) (cloned bool, err error) {
	dataset := b.datasetOf(c.name)
	var result destroyed
	err = poll.WhileBusy(ctx, patient(busyFor), func() (busy bool, err error) {
		result, err = b.runDestroy(ctx, dataset, dead)
		return err == nil && result.errno == unix.EBUSY && len(result.blockers) == 0, err
	})
	switch {
	case err != nil:
		return false, err
	case result.errno == 0, result.errno == unix.ENOENT:
		return false, nil
	case len(result.blockers) > 0:
		return false, fault.New(fault.ErrInUse, "%s depend on it: remove them first", result.names())
	case result.errno == unix.EEXIST:
		return true, nil
	case result.errno == unix.EBUSY:
		return false, b.busy(result.errno, result.busy)
	}
	return false, fmt.Errorf("destroy %s: %w", dataset, result.errno)
}
