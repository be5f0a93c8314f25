package btrfs

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/quota"
)

// kept is the former state of a volume: a writable snapshot in the directory staging. If this process does not destroy
// the snapshot, the next start does.
type kept struct {
	b        *Backend
	volume   string
	id       uint64 // of the subvolume that the volume is
	snapshot string // its name in the directory staging
	limit    quota.Limit
}

// Keep implements cowcommon.Keeper. It takes about a millisecond, and writes the volume's unwritten data to disk.
func (b *Backend) Keep(ctx context.Context, name string) (cowcommon.Kept, error) {
	k := &kept{b: b, volume: name, snapshot: staging.Name(name + "~")}
	dir, err := b.acquire(ctx, name, inuse.Brief)
	if err == nil {
		err = errors.Join(k.take(dir), b.release(name, inuse.Brief))
	}
	if err != nil {
		return nil, fault.Wrap("keep volume", name, err)
	}
	return k, nil
}

func (k *kept) take(volume *subvolume) error {
	if volume.info.ReadOnly {
		return fault.ErrSealed
	}
	nested, err := k.b.nestedIn(volume.info.ID)
	if err == nil && len(nested) > 0 {
		err = fault.New(errdefs.ErrNotImplemented, "a snapshot would lack the subvolumes nested in it")
	}
	if err != nil {
		return err
	}
	if k.limit, err = k.b.quotas.Limit(volume.info.ID); err != nil {
		return err
	}
	k.id = volume.info.ID
	return snapshotTo(volume, k.b.dirs.staging, k.snapshot, quota.Inherited{})
}

// Restore exchanges the volume for the snapshot in one step. Returns errdefs.ErrNotFound if another volume has got the name since.
func (k *kept) Restore(ctx context.Context) error {
	return fault.Wrap("restore volume", k.volume, k.restore(ctx))
}

func (k *kept) restore(ctx context.Context) (err error) {
	v, err := k.b.claim(ctx, k.volume)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.done()) }()
	if v.info.ID != k.id {
		return fault.New(errdefs.ErrNotFound, "the volume has got another content")
	}
	snapshot, err := k.b.openSubvolume(k.b.dirs.staging, k.snapshot)
	if err != nil {
		return err
	}
	defer snapshot.Close()
	if err := k.b.quotas.SetLimit(ctx, snapshot.info.ID, k.limit); err != nil {
		return err
	}
	staging, subvolumes := int(k.b.dirs.staging.Fd()), int(k.b.dirs.subvolumes.Fd())
	if err := unix.Renameat2(staging, k.snapshot, subvolumes, k.volume, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return k.b.commit()
}

// Close destroys the subvolume in the directory staging: the snapshot, or the volume for which it was exchanged.
func (k *kept) Close() error {
	defer k.b.sweepSometimes()
	return fault.Wrap("forget kept volume", k.volume, k.b.destroy(k.b.dirs.staging, k.snapshot))
}
