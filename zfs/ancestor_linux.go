package zfs

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// moment is a dataset at the moment of one of its snapshots, or as it is now if snapshot is "".
type moment struct{ dataset, snapshot string }

// meet finds the latest dataset from which two moments have come, and the two moments of it from which they have: one of
// them is the earlier one. Each moment has come from its own dataset. Removed volumes and foreign datasets count.
func meet(ctx context.Context, one, other moment, originOf func(context.Context, string) (string, error)) (at [2]moment, ok bool, err error) {
	seen := [2]map[string]string{{}, {}}
	next := [2]moment{one, other}
	for next[0].dataset != "" || next[1].dataset != "" {
		for i, m := range next {
			if m.dataset == "" {
				continue
			}
			if snapshot, ok := seen[1-i][m.dataset]; ok {
				at[i], at[1-i] = m, moment{m.dataset, snapshot}
				return at, true, nil
			}
			if _, again := seen[i][m.dataset]; again { // others promote datasets meanwhile
				return at, false, nil
			}
			seen[i][m.dataset] = m.snapshot
			origin, err := originOf(ctx, m.dataset)
			if err != nil {
				return at, false, err
			}
			next[i] = moment{sourceOf(origin), origin}
		}
	}
	return at, false, nil
}

// commonSnapshot finds the latest snapshot from which two moments have come. It is "" if there is none.
func (b *Backend) commonSnapshot(ctx context.Context, one, other moment) (string, error) {
	at, ok, err := meet(ctx, one, other, b.originOf)
	switch {
	case err != nil || !ok:
		return "", err
	case at[0].snapshot == "" || at[0].snapshot == at[1].snapshot:
		return at[1].snapshot, nil
	case at[1].snapshot == "":
		return at[0].snapshot, nil
	}
	var created [2]uint64
	for i, m := range at {
		if created[i], err = b.createdIn(ctx, m.snapshot); err != nil {
			return "", err
		}
	}
	if created[0] <= created[1] {
		return at[0].snapshot, nil
	}
	return at[1].snapshot, nil
}

// createdIn is the transaction group in which a snapshot was taken. A dataset has at most one snapshot of each.
func (b *Backend) createdIn(ctx context.Context, snapshot string) (uint64, error) {
	d, err := b.stats(ctx, snapshot)
	if err != nil {
		return 0, err
	}
	created, ok := d.Properties.Number("createtxg")
	if !ok {
		return 0, fmt.Errorf("zfs get: %s has no createtxg", snapshot)
	}
	return created, nil
}

// originOf is the snapshot from which a dataset was cloned. It is "" for others, and if there is no such dataset.
func (b *Backend) originOf(ctx context.Context, dataset string) (string, error) {
	if name, ok := strings.CutPrefix(dataset, b.root+"/"); ok && !strings.Contains(name, "/") && !isAside(name) {
		d, err := b.volume(ctx, name)
		if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
			err = nil
		}
		return d.origin, err
	}
	return b.zfs.originOf(ctx, dataset)
}
