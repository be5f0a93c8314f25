package zfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/ancestry"
)

// Hints asks the kernel which inodes may differ between two snapshots, as zfs diff does, and finds their names in the
// directories of both. top must have been cloned from base, directly or through other clones. For other pairs, siblings
// included, ZFS has no answer.
//
// zfs diff itself is not used. It takes names from a record of the directory in which an inode was last linked, and so
// misses files that have lost that link. It also makes the kernel build paths in a buffer. Up to OpenZFS 2.3.2 at
// least, a path of some 8 KiB overruns this buffer, and anybody in a container can make such a path.
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
	related, err := b.isAncestor(ctx, baseView, topView)
	if err != nil {
		return nil, fmt.Errorf("find common ancestor: %w", err)
	}
	if !related {
		return nil, &treediff.NoHintsError{Reason: "unrelated", Err: fmt.Errorf("%s was not cloned from %s", topView.volume, baseView.snapshot)}
	}

	changed, err := b.zfs.changedObjects(ctx, baseView.snapshot, topView.snapshot)
	if err != nil {
		return nil, err
	}
	return read(ctx, b.zfs, "compare", func(kernel) (*treediff.Hints, error) { // it waits for the pool
		return nominate(ctx, changed, baseView.Dir(), topView.Dir())
	})
}

// moment is a dataset at the moment of one of its snapshots.
type moment struct{ dataset, snapshot string }

// isAncestor reports whether top was cloned, directly or through other clones, from the snapshot of the view base. Some
// of the volumes in between may have been removed and set aside.
func (b *Backend) isAncestor(ctx context.Context, base, top *view) (bool, error) {
	for m, err := range ancestry.Of(moment{b.datasetOf(top.volume), top.snapshot}, func(m moment) (_ moment, ok bool, err error) {
		origin, err := b.originOf(ctx, m.dataset)
		return moment{sourceOf(origin), origin}, origin != "", err
	}) {
		if err != nil || m.snapshot == base.snapshot {
			return err == nil, err
		}
	}
	return false, nil
}

// originOf is the snapshot from which the dataset of a volume was cloned, or a dataset that was set aside. It is "" for
// others, and if there is no such dataset.
func (b *Backend) originOf(ctx context.Context, dataset string) (string, error) {
	name, ok := strings.CutPrefix(dataset, b.root+"/")
	if !ok {
		return "", nil
	}
	if isAside(name) {
		d, err := b.stats(ctx, dataset)
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return d.Origin, err
	}
	d, err := b.volume(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		err = nil
	}
	return d.origin, err
}
