package zfs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/staging"
)

// parentProperty is the property of an adopted volume that records its parent: the parent's property guid, which a dataset
// keeps for good, or "0" for none. The origin of an adopted volume is foreign. A clone does not have the record of its source.
const parentProperty = "cowshed:parent"

// Adopt implements cowcommon.Adopter. The volume is a clone of a snapshot that is taken of the dataset source. Until
// Settle, ZFS does not destroy that dataset, and Remove destroys the snapshot with the volume.
func (b *Backend) Adopt(ctx context.Context, name, parent, source string, opts cowcommon.VolumeOptions) error {
	return fault.WrapWith("adopt volume", name, fault.From(source), b.adopt(ctx, name, parent, source, opts))
}

func (b *Backend) adopt(ctx context.Context, name, parent, source string, opts cowcommon.VolumeOptions) (err error) {
	if err := opts.CheckRoot(); err != nil {
		return err
	}
	if parent != "" {
		if err := cowcommon.CheckID(parent); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	c, err := b.claimNew(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	if err := b.zfs.checkForeign(ctx, b.root, source); err != nil {
		return err
	}
	if parent == "" {
		return b.adoptFrom(ctx, c, 0, source, opts)
	}
	seals := b.seals()
	// The volume has no data of its parent, so a parent in use needs no snapshot.
	seals.CloneInUse = func(_ context.Context, _ string, adopt func(string) error) error { return adopt("") }
	return seals.Clone(ctx, parent, func(string) error {
		if err := b.zfs.checkRelated(ctx, b.datasetOf(parent), source); err != nil {
			return err
		}
		guid, err := b.guidOf(ctx, parent)
		if err != nil {
			return err
		}
		return b.adoptFrom(ctx, c, guid, source, opts)
	})
}

// guidOf asks the kernel for the guid of a volume.
func (b *Backend) guidOf(ctx context.Context, name string) (uint64, error) {
	d, err := b.stats(ctx, b.datasetOf(name))
	if err != nil {
		return 0, err
	}
	guid, ok := d.Properties.Number("guid")
	if !ok {
		return 0, fmt.Errorf("zfs get: %s has no guid", d.Name)
	}
	b.volumes.update(name, func(d *dataset) { d.guid = guid })
	return guid, nil
}

// adoptFrom makes the volume of a claimed name. Its intent names the snapshot of the foreign dataset, so that the snapshot
// is not left there after a crash.
func (b *Backend) adoptFrom(ctx context.Context, c *claim, parent uint64, source string, opts cowcommon.VolumeOptions) error {
	origin := source + "@" + staging.Name(clonePrefix)
	values := properties(opts.Limit)
	values[parentProperty] = strconv.FormatUint(parent, 10)
	discard := func(ctx context.Context) error { return b.discardUncloned(ctx, origin) }
	err := b.intended(ctx, c.name, origin, discard, func(intended time.Time) (known func() bool, err error) {
		if err := b.act(ctx, step{
			op:       "snapshot",
			do:       func(k kernel) error { return k.Snapshot(origin) },
			happened: b.isThere(origin),
			undo:     discard,
		}); err != nil {
			return func() bool { return true }, err
		}
		return b.makeIntended(ctx, c, intended, "clone", func(k kernel) error { return k.Clone(b.datasetOf(c.name), origin, values) })
	})
	if err != nil {
		return b.explain(ctx, b.explainLimit(ctx, err, source, opts.Limit), c.name, "")
	}
	b.volumes.set(c.name, dataset{
		origin: origin, limit: opts.Limit, created: time.Now(), marked: true, own: true, adopted: true, parent: parent,
	})
	return nil
}

// discardUncloned destroys a snapshot, unless it has clones.
func (b *Backend) discardUncloned(ctx context.Context, snapshot string) error {
	err := b.discard(ctx, snapshot)
	if isRefused(err) && errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
