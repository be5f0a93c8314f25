package zfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// Hints asks the kernel which inodes may differ between two snapshots, as zfs diff does, and finds their names in the
// directories of both. If neither snapshot has come from the other, it asks how each differs from the latest snapshot
// from which both have come. If there is no such snapshot, ZFS has no answer.
//
// zfs diff itself is not used. It takes an inode's name from a record of the directory of its last link. So it misses
// files that have lost this link. It also makes the kernel build paths in a buffer. Up to OpenZFS 2.3.2 at least, a
// path of some 8 KiB overruns this buffer, and anybody in a container can make such a path.
func (b *Backend) Hints(ctx context.Context, base, top cowcommon.View) (*treediff.Hints, error) {
	hints, err := b.hints(ctx, base, top)
	if err != nil {
		return nil, fault.Wrap("find hints", "", treediff.WithoutHints(ctx, "kernel", err))
	}
	return hints, nil
}

func (b *Backend) hints(ctx context.Context, base, top cowcommon.View) (*treediff.Hints, error) {
	baseView, ok1 := base.(*view)
	topView, ok2 := top.(*view)
	if !ok1 || !ok2 || baseView.b.root != topView.b.root {
		return nil, &treediff.NoHintsError{Reason: "unrelated", Err: errors.New("not two views of volumes below one dataset")}
	}
	if baseView.snapshot == "" || topView.snapshot == "" {
		return nil, &treediff.NoHintsError{Reason: "read-only", Err: errors.New("a layer that is not sealed has no snapshot, and none can be taken")}
	}
	if baseView.snapshot == topView.snapshot {
		return &treediff.Hints{}, nil
	}
	since, err := b.commonSnapshot(ctx, moment{b.datasetOf(baseView.volume), baseView.snapshot}, moment{b.datasetOf(topView.volume), topView.snapshot})
	if err != nil {
		return nil, fmt.Errorf("find common ancestor: %w", err)
	}
	if since == "" {
		return nil, &treediff.NoHintsError{Reason: "unrelated", Err: fmt.Errorf("%s and %s have no common ancestor", topView.volume, baseView.volume)}
	}
	var changed changes
	if baseView.snapshot != since {
		if changed.base, err = b.zfs.changedObjects(ctx, since, baseView.snapshot); err != nil {
			return nil, err
		}
	}
	if topView.snapshot != since {
		if changed.top, err = b.zfs.changedObjects(ctx, since, topView.snapshot); err != nil {
			return nil, err
		}
	}
	return read(ctx, b.zfs, "compare", func(kernel) (*treediff.Hints, error) { // it waits for the pool
		return nominate(ctx, changed, baseView.Dir(), topView.Dir())
	})
}
