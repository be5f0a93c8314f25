package dockerroot

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path"
	"strings"

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

func (b branches) refresh(context.Context) (keeper, error) { return b, nil }

func (b branches) check(id string, below int) error {
	if err := isDir(b.root, path.Join("aufs/diff", id)); err != nil {
		return err
	}
	data, err := b.root.ReadFile(path.Join("aufs/layers", id), maxParents)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return checkBelow(b.log, id, len(strings.Fields(string(data))), below)
}

func (branches) limit(string) int64 { return 0 }

func (b branches) open(_ context.Context, id string) (*migrate.Content, error) {
	dir, err := b.root.OpenDir(path.Join("aufs/diff", id))
	if err != nil {
		return nil, typed(err)
	}
	return &migrate.Content{Dir: dir, Form: migrate.Aufs}, nil
}

func (branches) uses() []string { return []string{"aufs/diff"} }

func (b branches) remove(ctx context.Context) error { return removeTree(ctx, b.root, "aufs", false) }
