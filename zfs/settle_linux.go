package zfs

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// limitProperty records the quota of a dataset, in bytes, while it is promoted without a quota.
const limitProperty = "cowshed:limit"

// Settle implements cowcommon.Settler. It promotes the volume's dataset, which then has the snapshots of the foreign dataset
// up to the origin. With these, more data counts against the limit: if it is more than the limit, the limit is raised.
func (b *Backend) Settle(ctx context.Context, name string) error {
	return fault.Wrap("settle volume", name, b.settleVolume(ctx, name))
}

func (b *Backend) settleVolume(ctx context.Context, name string) error {
	return b.limiting(ctx, name, func(waiting context.Context) error { return b.settleLimited(ctx, waiting, name) })
}

// settleLimited settles a volume whose limit nobody else sets meanwhile: it is lifted for a while.
func (b *Backend) settleLimited(ctx, waiting context.Context, name string) error {
	own := b.datasetOf(name)
	for {
		clone, err := b.unsettled(ctx, own)
		switch {
		case err != nil:
			return err
		case clone.Name == "":
			return b.restoreQuota(ctx, own)
		case clone.Name == own:
			err = b.promote(ctx, clone)
		default:
			err = b.promoteRemoved(ctx, waiting, own, clone.Name)
		}
		if err != nil {
			return b.explainSpace(ctx, err)
		}
	}
}

// CheckSettle implements cowcommon.Settler. It does not know the data that others write before Settle.
func (b *Backend) CheckSettle(ctx context.Context, names ...string) error {
	r := newRoom()
	for _, name := range names {
		if err := b.checkSettle(ctx, name, r); err != nil {
			return fault.Wrap("check settling of volume", name, err)
		}
	}
	err := b.zfs.ask(ctx, "get", func() error { return r.check(b.zfs.kernel) })
	return fault.Wrap("check the room for settling", "", err)
}

// checkSettle checks one volume, and notes the data that settling it moves.
func (b *Backend) checkSettle(ctx context.Context, name string, r *room) error {
	if _, err := b.volume(ctx, name); err != nil {
		return err
	}
	clone, err := b.unsettled(ctx, b.datasetOf(name))
	if err != nil || clone.Name == "" {
		return err
	}
	moved, err := b.checkMoved(ctx, clone)
	if err == nil {
		r.move(clone.Name, moved)
	}
	return err
}

// unsettled finds the dataset that keeps a volume dependent on a foreign dataset: that of the volume, or of a removed
// ancestor that was set aside. An ancestor that is a volume is settled by itself: its users may be changing it. The result
// is the zero Dataset if there is none.
func (b *Backend) unsettled(ctx context.Context, dataset string) (zfsctl.Dataset, error) {
	for {
		d, err := b.stats(ctx, dataset)
		if err != nil || d.Origin == "" {
			return zfsctl.Dataset{}, err
		}
		dataset = sourceOf(d.Origin)
		switch {
		case !isBelow(b.root, dataset):
			return d, nil
		case !isAside(strings.TrimPrefix(dataset, b.root+"/")):
			return zfsctl.Dataset{}, nil
		}
	}
}

// promoteRemoved promotes the dataset of a removed ancestor of a volume. Other volumes may have the same ancestor.
func (b *Backend) promoteRemoved(ctx, waiting context.Context, of, ancestor string) (err error) {
	unlock, err := b.claimLimit(waiting, strings.TrimPrefix(ancestor, b.root+"/"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.after(err, unlock)) }()
	clone, err := b.unsettled(ctx, of)
	if err != nil || clone.Name != ancestor { // another has settled it
		return err
	}
	return b.promote(ctx, clone)
}

// promote makes a clone the owner of its origin, and of the earlier snapshots of the foreign dataset.
func (b *Backend) promote(ctx context.Context, clone zfsctl.Dataset) (err error) {
	if _, err := b.checkMoved(ctx, clone); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.after(err, func() error { return b.restoreQuota(ctx, clone.Name) })) }()
	if err := b.liftQuota(ctx, clone); err != nil {
		return err
	}
	// Then its last clone, which is the foreign dataset, takes it along.
	if strings.HasPrefix(snapshotName(clone.Origin), clonePrefix) {
		if err := b.act(ctx, step{
			op: "destroy",
			do: func(k kernel) error { return k.DestroySnapshotLater(clone.Origin) },
			happened: func(ctx context.Context) (bool, error) {
				d, err := b.stats(ctx, clone.Origin)
				goes, _ := d.Properties.Number("defer_destroy")
				return err == nil && goes != 0, err
			},
		}); err != nil {
			return err
		}
	}
	err = b.act(ctx, step{
		op: "promote",
		do: func(k kernel) error { return k.Promote(clone.Name) },
		happened: func(ctx context.Context) (bool, error) {
			d, err := b.stats(ctx, clone.Name)
			return err == nil && d.Origin != clone.Origin, err
		},
	})
	b.volumes.doubt() // the origins of others are different too
	if isRefused(err) && errors.Is(err, unix.EEXIST) {
		err = fault.New(errdefs.ErrFailedPrecondition, "snapshots of %s have names as those of %s: rename them with zfs rename: %w",
			sourceOf(clone.Origin), clone.Name, err)
	}
	return err
}

// liftQuota records the quota of a dataset, and then removes it. The kernel sets a quota in a transaction group of its own,
// so the record comes first, with a call of its own.
func (b *Backend) liftQuota(ctx context.Context, d zfsctl.Dataset) error {
	limit, _ := d.Properties.Number("quota")
	if limit == 0 {
		return nil
	}
	if err := b.setValues(ctx, d.Name, zfsctl.Values{limitProperty: strconv.FormatUint(limit, 10)}); err != nil {
		return err
	}
	return b.setValues(ctx, d.Name, zfsctl.Values{"quota": uint64(0)})
}

// checkMoved lists the snapshots of a foreign dataset up to a clone's origin, and checks whether they may become the clone's.
// These are those that Cowshed has taken, and those that go with their last clones, as moby's driver takes them. Returns
// errdefs.ErrFailedPrecondition with the names of others, and of those whose names the clone's own snapshots have.
func (b *Backend) checkMoved(ctx context.Context, clone zfsctl.Dataset) (moved []zfsctl.Dataset, err error) {
	foreign := sourceOf(clone.Origin)
	last, err := b.createdIn(ctx, clone.Origin)
	if err != nil {
		return nil, err
	}
	var others, taken []string
	moved, err = read(ctx, b.zfs, "list", func(k kernel) (moved []zfsctl.Dataset, err error) {
		for s, err := range k.Snapshots(foreign) {
			if err != nil {
				return nil, err
			}
			d, err := k.Stats(s.Name)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return nil, err
			}
			name := snapshotName(s.Name)
			created, _ := d.Properties.Number("createtxg")
			goes, _ := d.Properties.Number("defer_destroy")
			if created > last {
				continue
			}
			moved = append(moved, d)
			if goes == 0 && !strings.HasPrefix(name, clonePrefix) {
				others = append(others, s.Name)
			}
			there, err := k.Exists(clone.Name + "@" + name)
			if err != nil {
				return nil, err
			}
			if there {
				taken = append(taken, s.Name)
			}
		}
		return moved, nil
	})
	switch {
	case err != nil:
		return nil, err
	case len(others) > 0:
		return nil, fault.New(errdefs.ErrFailedPrecondition, "other programs have taken the snapshots %s, which would become the layer's: destroy them first",
			someOf(others))
	case len(taken) > 0:
		return nil, fault.New(errdefs.ErrFailedPrecondition, "the snapshots %s have names as those of %s: rename them with zfs rename", someOf(taken), clone.Name)
	}
	return moved, nil
}

// someOf lists names for an error.
func someOf(names []string) string {
	if len(names) > 16 {
		return strings.Join(names[:16], ", ") + " and others"
	}
	return strings.Join(names, ", ")
}

// snapshotName is the name of a snapshot without that of its dataset.
func snapshotName(snapshot string) string {
	_, name, _ := strings.Cut(snapshot, "@")
	return name
}

func (b *Backend) setValues(ctx context.Context, dataset string, values zfsctl.Values) error {
	s := step{
		op: "set",
		do: func(k kernel) error { return k.Set(dataset, values) },
		happened: func(ctx context.Context) (bool, error) {
			d, err := b.stats(ctx, dataset)
			return err == nil && hasValues(d, values), err
		},
	}
	return b.actToEnd(ctx, s)
}

// hasValues reports whether a dataset has these values. Properties that it lacks are zero.
func hasValues(d zfsctl.Dataset, values zfsctl.Values) bool {
	for name, want := range values {
		var has any
		if _, isText := want.(string); isText {
			has, _ = d.Properties.Text(name)
		} else {
			has, _ = d.Properties.Number(name)
		}
		if has != want {
			return false
		}
	}
	return true
}

// restoreQuota gives a dataset the quota that it had before it was promoted. If it holds more now, it gets that much, and
// some more.
func (b *Backend) restoreQuota(ctx context.Context, dataset string) error {
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	d, err := b.stats(ctx, dataset)
	if err != nil {
		return err
	}
	recorded, _ := d.Properties.Text(limitProperty)
	limit, err := strconv.ParseUint(recorded, 10, 64)
	if err != nil {
		return nil // it had none, or has it again
	}
	err = b.setValues(ctx, dataset, zfsctl.Values{"quota": limit})
	if isRefused(err) && errors.Is(err, unix.ENOSPC) {
		used, _ := d.Properties.Number("used")
		raised := used + little
		b.log.Warn("zfs: a layer holds more than its limit, which is raised", "dataset", dataset,
			"limit", quota.FormatSize(limit), "raised", quota.FormatSize(raised))
		err = b.setValues(ctx, dataset, zfsctl.Values{"quota": raised})
	}
	if err == nil {
		err = b.setValues(ctx, dataset, zfsctl.Values{limitProperty: ""})
	}
	b.volumes.doubt()
	return err
}
