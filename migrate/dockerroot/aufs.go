package dockerroot

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// branches is the driver aufs:
//
//	aufs/diff/ID     the changes of a layer
//	aufs/layers/ID   the IDs of the layers below, nearest first, one a line
//	aufs/mnt/ID      where it is mounted
//
// Docker renames a layer to ID-removing before it removes it. No layer of the layerdb has such an ID.
type branches struct {
	root *rootdir.Dir
	log  *slog.Logger
}

func (b branches) check(id, parent string) error {
	if err := isDir(b.root, path.Join("aufs/diff", id)); err != nil {
		return err
	}
	below, known, err := b.below(id)
	if err != nil {
		return err
	}
	var want []string
	if parent != "" {
		above, parentKnown, err := b.below(parent)
		if err != nil {
			return err
		}
		known = known && parentKnown && len(below) > 0
		want = append([]string{parent}, above...)
	}
	switch {
	case !known:
		b.log.Warn("docker: a file of aufs/layers is missing or empty, the layerdb is believed", "layer", id, "parent", parent)
	case !slices.Equal(below, want):
		return fault.New(errdefs.ErrDataLoss, "the driver keeps other layers below it than the layerdb")
	}
	return nil
}

// below lists the IDs of the layers below a layer. known is false if there is no list.
func (b branches) below(id string) (ids []string, known bool, err error) {
	data, err := b.root.ReadFile(path.Join("aufs/layers", id), maxParents)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	return strings.Fields(string(data)), err == nil, err
}

func (branches) limit(string) int64 { return 0 }

func (b branches) open(_ context.Context, id string) (*migrate.Content, error) {
	dir, err := b.root.OpenDir(path.Join("aufs/diff", id))
	if err != nil {
		return nil, typed(err)
	}
	return &migrate.Content{Dir: dir, Form: migrate.Aufs}, nil
}

func (branches) uses() []string { return []string{"aufs"} }

func (b branches) remove(ctx context.Context) error { return removeTree(ctx, b.root, "aufs", false) }
