package btrfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/internal/sealing"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// Fork implements cowcommon.Forker: moment is a read-only snapshot of source, and each of names a snapshot of moment. If
// nothing but a limit goes with them, each is one call.
func (b *Backend) Fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	return fault.WrapWith("fork volume", moment, fault.From(source), b.fork(ctx, source, moment, names, opts))
}

func (b *Backend) fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	if err := opts.CheckRoot(); err != nil {
		return err
	}
	for _, name := range append([]string{moment}, names...) {
		if err := b.checkFree(name); err != nil {
			return fault.Wrap("clone volume", name, err)
		}
	}
	if opts.Limit.Bytes != 0 && len(names) > 0 {
		// As in clone.
		if _, err := b.quotas.Enable(ctx, opts.Limit.Scope); err != nil {
			return err
		}
	}
	if err := b.takeMoment(ctx, source, moment); err != nil {
		return err
	}
	err := b.cloneMoment(ctx, moment, names, opts)
	if err != nil {
		err = errors.Join(err, b.remove(b.ctx, moment))
	}
	return err
}

// cloneMoment makes each of names a clone of a sealed volume, one after the other: the kernel takes the lock of the directory
// for a whole snapshot, so side by side they take longer. If one fails, none is left.
func (b *Backend) cloneMoment(ctx context.Context, moment string, names []string, opts cowcommon.VolumeOptions) error {
	src, err := b.openVolume(moment)
	if err != nil {
		return err
	}
	defer src.Close()
	for i, name := range names {
		err := context.Cause(ctx)
		if err == nil {
			err = fault.Wrap("clone volume", name, b.cloneFrom(ctx, name, src, opts))
		}
		if err != nil {
			for _, made := range names[:i] {
				err = errors.Join(err, b.remove(b.ctx, made))
			}
			return err
		}
	}
	return nil
}

// takeMoment makes moment a read-only snapshot of source. The kernel makes it durable.
func (b *Backend) takeMoment(ctx context.Context, source, moment string) error {
	dir, err := b.acquire(ctx, source, inuse.Brief)
	if err != nil {
		return err
	}
	err = b.checkWhole(dir)
	if err == nil {
		err = dir.forgetReceived()
	}
	if err == nil {
		err = snapshotError(btrfsctl.Snapshot(int(b.dirs.subvolumes.Fd()), moment, dir.fd(), true, nil))
	}
	return errors.Join(err, b.release(source, inuse.Brief))
}

// CheckWhole implements cowcommon.Forker: a snapshot lacks the subvolumes nested in its source.
func (b *Backend) CheckWhole(_ context.Context, name string) error {
	volume, err := b.openVolume(name)
	if err == nil {
		err = errors.Join(b.checkWhole(volume), volume.Close())
	}
	return fault.Wrap("clone volume", name, err)
}

func (b *Backend) checkWhole(volume *subvolume) error {
	nested, err := b.nestedIn(volume.info.ID)
	if err == nil && len(nested) > 0 {
		err = fault.New(errdefs.ErrNotImplemented, "a snapshot would lack the subvolumes nested in it")
	}
	return err
}

// Exchange implements cowcommon.Exchanger with one rename.
func (b *Backend) Exchange(ctx context.Context, name, other string) error {
	return fault.WrapWith("exchange volume", name, "with "+other, b.exchange(ctx, name, other))
}

func (b *Backend) exchange(ctx context.Context, name, other string) (err error) {
	if name == other {
		return fault.New(errdefs.ErrInvalidArgument, "a volume cannot be exchanged with itself")
	}
	// In one order, so that two callers do not wait for each other.
	first, err := b.claimToExchange(ctx, min(name, other))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, first.done()) }()
	second, err := b.claimToExchange(ctx, max(name, other))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, second.done()) }()
	for _, c := range []*claimed{first, second} {
		if c.name == name && c.state() == sealing.Sealed {
			return fault.New(fault.ErrSealed, "others may be made from it")
		}
	}
	return b.exchangeClaimed(name, other)
}

// exchangeClaimed exchanges two volumes that the caller has claimed. A program outside may have mounted name by its path or by its
// MountSpec since the kernel was asked for mounts. Then name gets its content back.
func (b *Backend) exchangeClaimed(name, other string) error {
	exchange := func() error {
		subvolumes := int(b.dirs.subvolumes.Fd())
		return unix.Renameat2(subvolumes, name, subvolumes, other, unix.RENAME_EXCHANGE)
	}
	if err := exchange(); err != nil {
		return err
	}
	if err := b.checkExchanged(name, other); err != nil {
		if undo := errors.Join(exchange(), b.commit()); undo != nil {
			// No fault.ErrInUse, which says that nothing has changed.
			return fmt.Errorf("undo the exchange (%v): %w", err, undo) //nolint:errorlint // see above
		}
		return err
	}
	return b.commit()
}

// checkExchanged checks that no mount of name, made before an exchange, shows the tree that has the name other now. A mount of the
// volume itself has followed its tree. An overlay has kept the name, and tells its tree by its upper alone.
func (b *Backend) checkExchanged(name, other string) error {
	now := b.checkNotMounted(name)
	if !errors.Is(now, fault.ErrInUse) {
		return cmp.Or(b.checkNotMounted(other), now)
	}
	isUpper, err := b.hasMountedUpper(other)
	if err != nil || isUpper {
		return errors.Join(now, err)
	}
	return nil // somebody relies on the new content of name already
}

// hasMountedUpper reports whether a volume with a shared root has the upper of a mounted overlay.
func (b *Backend) hasMountedUpper(name string) (is bool, err error) {
	err = b.withVolume("look at", name, func(dir *subvolume) error {
		own, _, err := sharedmark.Open(dir.fd())
		if own < 0 || err != nil {
			return err
		}
		defer unix.Close(own)
		fd, err := treeat.OpenDir(own, sharedmark.Upper)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		upper := os.NewFile(uintptr(fd), sharedmark.Upper)
		defer upper.Close()
		is, err = mounttable.IsUpper(upper)
		return err
	})
	return is, err
}

// claimToExchange claims a volume, and sets the limit that moby's driver recorded for its name: the limit stays with the
// volume.
func (b *Backend) claimToExchange(ctx context.Context, name string) (*claimed, error) {
	c, err := b.claim(ctx, name)
	if err != nil {
		return nil, fault.Wrap("claim volume", name, err)
	}
	if err = b.applyRecordedLimit(ctx, name, c.subvolume); err == nil {
		err = b.forgetRecordedLimit(name)
	}
	if err != nil {
		return nil, errors.Join(err, c.done())
	}
	return c, nil
}
