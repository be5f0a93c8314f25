package dockerroot

import (
	"context"
	"maps"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/dataset"
	"github.com/cowshed/cowshed/migrate/internal/removal"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// datasets is the driver zfs: a layer is the dataset HOLDER/ID. Docker mounts it on zfs/graph/ID while it is used.
type datasets struct {
	root   *rootdir.Dir
	holder string
	byID   map[string]dataset.Dataset // nil: not listed
}

// newDatasets finds the dataset that the root is in, unless it is given.
func newDatasets(root *rootdir.Dir, given string) (keeper, error) {
	holder, err := dataset.Holder(root, given)
	if err != nil {
		return nil, err
	}
	return &datasets{root: root, holder: holder}, nil
}

// refresh lists the datasets.
func (d *datasets) refresh(ctx context.Context) (keeper, error) {
	byID, err := d.list(ctx)
	return &datasets{root: d.root, holder: d.holder, byID: byID}, err
}

func (d *datasets) list(ctx context.Context) (map[string]dataset.Dataset, error) {
	byID, err := dataset.Children(ctx, d.holder)
	maps.DeleteFunc(byID, func(id string, _ dataset.Dataset) bool { return !isLayerID(id) })
	return byID, err
}

// check ignores the parent: a dataset whose origin was promoted has another.
func (d *datasets) check(id string, _ int) error {
	if _, ok := d.byID[id]; !ok {
		return fault.New(errdefs.ErrNotFound, "dataset %s does not exist", d.name(id))
	}
	return nil
}

func (d *datasets) name(id string) string { return d.holder + "/" + id }

func (d *datasets) limit(id string) int64 { return d.byID[id].Quota }

func (d *datasets) open(ctx context.Context, id string) (*migrate.Content, error) {
	dir, err := dataset.Open(ctx, d.name(id))
	if err != nil {
		return nil, err
	}
	return &migrate.Content{Dir: dir, Form: migrate.Whole, Volume: d.name(id)}, nil
}

func (d *datasets) uses() []string { return nil }

// checkMounts returns ErrFailedPrecondition if a layer is mounted.
func (d *datasets) checkMounts() error { return dataset.InUse(d.holder, isLayerID) }

func (d *datasets) remove(ctx context.Context) error {
	byID, err := d.list(ctx)
	if err != nil {
		return err
	}
	if err := dataset.Destroy(ctx, d.holder, byID); err != nil {
		return err
	}
	return removal.Tree(ctx, d.root, "zfs")
}
