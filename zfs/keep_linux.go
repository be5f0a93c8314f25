package zfs

import (
	"context"
	"errors"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/quota"
)

// kept is a snapshot of a volume, with a name and a lock like those of a view. So after a crash it goes like a view. It
// is not mounted.
type kept struct {
	b      *Backend
	volume string
	m      *mountedSnapshot
	limit  quota.Limit
}

// Keep implements cowcommon.Keeper with one snapshot. Until Close the volume cannot be removed.
func (b *Backend) Keep(ctx context.Context, name string) (cowcommon.Kept, error) {
	k, err := b.keep(ctx, name)
	if err != nil {
		return nil, fault.Wrap("keep volume", name, err)
	}
	return k, nil
}

func (b *Backend) keep(ctx context.Context, name string) (_ *kept, err error) {
	d, err := b.volume(ctx, name)
	if err != nil {
		return nil, err
	}
	done, err := b.rely(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.after(err, done)) }()
	switch is, err := b.isSealed(ctx, name); {
	case err != nil:
		return nil, err
	case is:
		return nil, fault.ErrSealed
	}
	m, err := b.takeTemporary(ctx, name, staging.Name(name+"@"+viewPrefix))
	if err != nil {
		return nil, err
	}
	return &kept{b: b, volume: name, m: m, limit: d.limit}, nil
}

// Restore rolls the volume back. It fails if the volume has a newer snapshot, for a view or a clone.
func (k *kept) Restore(ctx context.Context) error {
	err := k.rollBack(ctx)
	if fault.IsFull(err) { // the content of then exceeds the limit of now, and not that of then
		if err = k.restoreLimit(ctx); err == nil {
			err = k.rollBack(ctx)
		}
	}
	if err == nil { // then the limit follows, although ctx may have ended
		ctx, cancel := k.b.zfs.later(ctx)
		defer cancel()
		err = k.restoreLimit(ctx)
	}
	return fault.Wrap("restore volume", k.volume, err)
}

func (k *kept) rollBack(ctx context.Context) (err error) {
	if _, err := k.b.volume(ctx, k.volume); err != nil {
		return err
	}
	c, err := k.b.claim(ctx, k.volume)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	// The kernel would roll a mounted dataset back.
	if err := k.b.checkNotMounted(ctx, k.volume); err != nil {
		return err
	}
	dataset := k.b.datasetOf(k.volume)
	err = k.b.act(ctx, step{
		op:       "rollback",
		do:       func(kernel kernel) error { return kernel.Rollback(dataset, k.m.name) },
		happened: func(ctx context.Context) (bool, error) { return k.isAsKept(ctx) },
	})
	return k.b.explainMissing(ctx, err, k.volume)
}

// isAsKept reports whether the volume, which is not mounted, is as it was when it was kept: the kept snapshot is its latest,
// and nothing was written since. A rollback makes it so.
func (k *kept) isAsKept(ctx context.Context) (bool, error) {
	d, err := k.b.stats(ctx, k.b.datasetOf(k.volume))
	if err != nil {
		return false, err
	}
	latest, _ := d.Properties.Text("prevsnap")
	written, known := d.Properties.Number("written")
	return latest == k.m.name && known && written == 0, nil
}

func (k *kept) restoreLimit(ctx context.Context) error {
	d, err := k.b.volume(ctx, k.volume)
	if err != nil || d.limit == k.limit {
		return err
	}
	return k.b.setLimit(ctx, k.volume, k.limit)
}

// Close destroys the snapshot.
func (k *kept) Close() error {
	return fault.Wrap("forget kept volume", k.volume, k.b.endView(k.m))
}
