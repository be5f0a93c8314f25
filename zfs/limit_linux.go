package zfs

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// The kernel says unix.ENOSPC both without space and if a volume holds more than the limit that it is to have. The errors
// of the second kind are made here. They are none of a full filesystem: fault.IsFull is false for them.

// explainLimit checks whether a call that was to make a volume has failed because of the volume's limit. ZFS makes no
// dataset that exceeds its limit from the start. An empty one holds some KiB, and with scope total a clone holds the
// data of the dataset source. source is "" for an empty volume. Returns errdefs.ErrInvalidArgument in this case.
func (b *Backend) explainLimit(ctx context.Context, err error, source string, limit quota.Limit) error {
	if limit.Bytes == 0 || isLost(err) || !fault.IsFull(err) {
		return err
	}
	held := uint64(0)
	if source != "" && limit.Scope == quota.ScopeTotal {
		d, statsErr := b.stats(ctx, source)
		if statsErr != nil {
			return err
		}
		held, _ = d.Properties.Number("referenced")
	}
	switch {
	case held >= limit.Bytes:
		return fault.New(errdefs.ErrInvalidArgument, "the image holds %s, which leaves nothing of %s: %v", quota.FormatSize(held), limit, err)
	case limit.Bytes-held > little || b.lackOfSpace(ctx) != nil:
		return err
	}
	return fault.New(errdefs.ErrInvalidArgument, "%s is too small for a new volume: raise it by %s: %v", limit, quota.FormatSize(little), err)
}

// explainLimited adds the reason to the error of a call that was to set a limit: errdefs.ErrFailedPrecondition if the
// volume has too much data already, errdefs.ErrNotFound if the volume is gone, or the lack of space.
func (b *Backend) explainLimited(ctx context.Context, err error, name string, limit quota.Limit) error {
	if limit.Bytes == 0 || !errors.Is(err, unix.ENOSPC) {
		return b.explainMissing(ctx, err, name)
	}
	usage, usageErr := b.usage(ctx, name)
	if usageErr != nil {
		return usageErr
	}
	// The volume may hold less by now.
	if held := usage.Against(limit); held >= limit.Bytes || b.lackOfSpace(ctx) == nil {
		return fault.New(errdefs.ErrFailedPrecondition, "the volume holds %s already, more than %s: %v", quota.FormatSize(held), limit, err)
	}
	return b.explainSpace(ctx, err)
}
