package zfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// CheckAdopt implements cowcommon.Adopter.
func (b *Backend) CheckAdopt(ctx context.Context, parent, source, planned string) error {
	return fault.Wrap("check adopting of volume", source, b.checkAdopt(ctx, parent, source, planned))
}

func (b *Backend) checkAdopt(ctx context.Context, parent, source, planned string) error {
	if parent != "" {
		if _, err := b.volume(ctx, parent); err != nil {
			return err
		}
		planned = b.datasetOf(parent)
	}
	return b.zfs.checkAdopt(ctx, b.root, source, planned)
}

// checkAdoptInto is CheckAdopt for a home that is not there yet. fsname is the option that names the dataset.
func checkAdoptInto(ctx context.Context, home, fsname, source, planned string) error {
	return withPlanned(ctx, home, fsname, func(c *control, root string) error { return c.checkAdopt(ctx, root, source, planned) })
}

// withPlanned calls do with the dataset that would hold the volumes of a home.
func withPlanned(ctx context.Context, home, fsname string, do func(c *control, root string) error) (err error) {
	root, err := detectDataset(ctx, home, fsname)
	if err != nil {
		return err
	}
	pool, _, _ := strings.Cut(root, "/")
	c, err := openControl(ctx, pool)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.kernel.Close()) }()
	return do(c, root)
}

// checkAdopt checks whether a dataset can be adopted by a Backend on root. relative is the dataset of the parent, or the
// dataset that the parent will be adopted from. It is "" without a parent.
func (c *control) checkAdopt(ctx context.Context, root, source, relative string) error {
	if err := c.checkForeign(ctx, root, source); err != nil || relative == "" {
		return err
	}
	return c.checkRelated(ctx, relative, source)
}

// checkForeign checks whether a dataset can be adopted without a parent.
func (c *control) checkForeign(ctx context.Context, root, source string) error {
	pool, _, _ := strings.Cut(source, "/")
	if pool != c.pool || strings.ContainsAny(source, "@#") {
		return fault.New(errdefs.ErrNotImplemented, "%q is no dataset in the pool %s", source, c.pool)
	}
	why, err := read(ctx, c, "get", func(k kernel) (why error, err error) {
		foreign, err := k.Stats(source)
		if err != nil {
			return nil, err
		}
		if isBelow(root, source) {
			return whyNotHere(root, foreign), nil
		}
		home, err := k.Stats(root)
		if err != nil {
			return nil, err
		}
		for below, err := range k.Children(source) {
			if err != nil {
				return nil, err
			}
			return fault.New(errdefs.ErrNotImplemented, "a clone would lack the datasets below it, such as %s", below.Name), nil
		}
		if why := zfsctl.WhyNoClone(foreign, home); why != "" {
			return fault.New(errdefs.ErrNotImplemented, "%s", why), nil
		}
		return nil, nil
	})
	if err != nil {
		return err
	}
	return why
}

// whyNotHere says why a dataset where the volumes are cannot be adopted. It is errdefs.ErrNotImplemented if another program
// made the dataset: Cowshed may have the dataset in which that program keeps its own.
func whyNotHere(root string, d zfsctl.Dataset) error {
	if d.Name != root && !describe(strings.TrimPrefix(d.Name, root+"/"), d).marked {
		return fault.New(errdefs.ErrNotImplemented, "another program has made it in %s, where the layers are", root)
	}
	return fault.New(errdefs.ErrInvalidArgument, "it is a layer of this home: clone the layer")
}

// isBelow reports whether a Backend on root keeps a volume in a dataset, or a removed one.
func isBelow(root, dataset string) bool {
	name, below := strings.CutPrefix(dataset, root+"/")
	return dataset == root || below && (!strings.Contains(name, "/") || isAside(name))
}

// checkRelated returns errdefs.ErrNotImplemented if two datasets have not come from the same snapshot: they cannot be compared
// natively.
func (c *control) checkRelated(ctx context.Context, parent, source string) error {
	_, related, err := meet(ctx, moment{dataset: parent}, moment{dataset: source}, c.originOf)
	if err != nil {
		return fmt.Errorf("find common ancestor: %w", err)
	}
	if !related {
		return fault.New(errdefs.ErrNotImplemented, "it has no common ancestor with the parent's dataset %s", parent)
	}
	return nil
}

// originOf is the snapshot from which a dataset was cloned. It is "" for others, and if there is no such dataset.
func (c *control) originOf(ctx context.Context, dataset string) (string, error) {
	d, err := read(ctx, c, "get", func(k kernel) (zfsctl.Dataset, error) { return k.Stats(dataset) })
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return d.Origin, err
}
