package zfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// little is the least available space with which making a dataset or snapshot certainly does not fail for lack of
// space. The kernel estimates some hundred KiB for each.
const little = 1 << 20

// explainSpace checks whether a call that makes something has failed for lack of space, and adds the reason to its error.
// It is unix.ENOSPC if the pool is full. It is also unix.ENOSPC if a quota is reached that is one of the dataset above the
// volumes, or of one above that. unix.EDQUOT is the limit of a volume alone, although the kernel says it for any quota.
func (b *Backend) explainSpace(ctx context.Context, err error) error {
	if isLost(err) || !fault.IsFull(err) {
		return err
	}
	reason := b.lackOfSpace(ctx)
	if reason == nil {
		return err
	}
	var refused *zfsctl.Error
	switch {
	case !errors.Is(err, unix.EDQUOT):
	case errors.As(err, &refused):
		err = &zfsctl.Error{Op: refused.Op, Name: refused.Name, Err: unix.ENOSPC}
	default:
		return fmt.Errorf("%w (%s)", reason, err.Error())
	}
	return fmt.Errorf("%w: %w", reason, err)
}

// lackOfSpace says where space is certainly lacking for a new dataset or snapshot, whatever limits volumes have. It
// returns nil if there is enough.
func (b *Backend) lackOfSpace(ctx context.Context) error {
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	switch {
	case b.isLittle(ctx, b.zfs.pool):
		return fmt.Errorf("the pool %s is full: remove something: %w", b.zfs.pool, unix.ENOSPC)
	case b.isLittle(ctx, b.root):
		return fmt.Errorf("a quota of %s is reached: remove something or raise it: %w", b.root, unix.ENOSPC)
	}
	return nil
}

// Free implements cowcommon.Spacer: it is the space that the parent dataset of the volumes' datasets has, under all
// quotas.
func (b *Backend) Free(ctx context.Context) (uint64, error) { return b.zfs.free(ctx, b.root) }

// freeInto is Free for a home that is not there yet. fsname is the option that names the dataset.
func freeInto(ctx context.Context, home, fsname string) (free uint64, err error) {
	err = withPlanned(ctx, home, fsname, func(c *control, root string) (err error) {
		free, err = c.free(ctx, root)
		return err
	})
	return free, err
}

// free is the space that a dataset has, under all quotas.
func (c *control) free(ctx context.Context, dataset string) (uint64, error) {
	d, err := read(ctx, c, "get", func(k kernel) (zfsctl.Dataset, error) { return k.Stats(dataset) })
	if err != nil {
		return 0, fault.Wrap("measure space of dataset", dataset, err)
	}
	available, ok := d.Properties.Number("available")
	if !ok {
		return 0, fault.Wrap("measure space of dataset", dataset, fault.New(errdefs.ErrInternal, "the kernel does not say how much space is available"))
	}
	return available, nil
}

// isLittle reports whether a dataset certainly has little space.
func (b *Backend) isLittle(ctx context.Context, dataset string) bool {
	available, err := b.zfs.free(ctx, dataset)
	return err == nil && available < little
}
