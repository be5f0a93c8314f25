package zfs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/internal/zfsctl"
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
	if err := b.checkForeign(ctx, source); err != nil {
		return err
	}
	if parent == "" {
		return b.adoptFrom(ctx, c, 0, source, opts)
	}
	seals := b.seals()
	// The volume has no data of its parent, so a parent in use needs no snapshot.
	seals.CloneInUse = func(_ context.Context, _ string, adopt func(string) error) error { return adopt("") }
	return seals.Clone(ctx, parent, func(string) error {
		guid, err := b.checkRelated(ctx, parent, source)
		if err != nil {
			return err
		}
		return b.adoptFrom(ctx, c, guid, source, opts)
	})
}

// checkForeign checks whether a dataset can be adopted.
func (b *Backend) checkForeign(ctx context.Context, source string) error {
	pool, _, _ := strings.Cut(source, "/")
	switch {
	case pool != b.zfs.pool || strings.ContainsAny(source, "@#"):
		return fault.New(errdefs.ErrNotImplemented, "%q is no dataset in the pool %s", source, b.zfs.pool)
	case b.isHere(source):
		return b.explainHere(ctx, source)
	}
	home, err := b.stats(ctx, b.root)
	if err != nil {
		return err
	}
	foreign, err := read(ctx, b.zfs, "get", func(k kernel) (zfsctl.Dataset, error) {
		d, err := k.Stats(source)
		if err != nil {
			return d, err
		}
		for below, err := range k.Children(source) {
			if err == nil {
				err = fault.New(errdefs.ErrNotImplemented, "a clone would lack the datasets below it, such as %s", below.Name)
			}
			return d, err
		}
		return d, nil
	})
	if err != nil {
		return err
	}
	if why := zfsctl.WhyNoClone(foreign, home); why != "" {
		return fault.New(errdefs.ErrNotImplemented, "%s", why)
	}
	return nil
}

// explainHere says why a dataset where the volumes are cannot be adopted. Returns errdefs.ErrNotImplemented if another program
// made it: Cowshed may have the dataset in which that program keeps its own.
func (b *Backend) explainHere(ctx context.Context, source string) error {
	d, ok, err := b.look(ctx, strings.TrimPrefix(source, b.root+"/"))
	switch {
	case err != nil:
		return err
	case ok && !d.marked:
		return fault.New(errdefs.ErrNotImplemented, "another program has made it in %s, where the layers are", b.root)
	}
	return fault.New(errdefs.ErrInvalidArgument, "it is a layer here: clone that")
}

// isHere reports whether a dataset is one in which this Backend keeps a volume, or a removed one.
func (b *Backend) isHere(dataset string) bool {
	name, below := strings.CutPrefix(dataset, b.root+"/")
	return dataset == b.root || below && (!strings.Contains(name, "/") || isAside(name))
}

// checkRelated returns the guid of a parent. Returns errdefs.ErrNotImplemented if the parent and a foreign dataset have not
// come from the same snapshot: they cannot be compared natively.
func (b *Backend) checkRelated(ctx context.Context, parent, source string) (guid uint64, err error) {
	d, err := b.stats(ctx, b.datasetOf(parent))
	if err != nil {
		return 0, err
	}
	guid, _ = d.Properties.Number("guid")
	_, related, err := b.meet(ctx, moment{dataset: b.datasetOf(parent)}, moment{dataset: source})
	if err != nil {
		return 0, fmt.Errorf("find common ancestor: %w", err)
	}
	if !related || guid == 0 {
		return 0, fault.New(errdefs.ErrNotImplemented, "it has no common ancestor with the parent %q", parent)
	}
	b.volumes.update(parent, func(d *dataset) { d.guid = guid })
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
