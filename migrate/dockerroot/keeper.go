package dockerroot

import (
	"context"
	"os"
	"path"

	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// keeper is how a driver keeps the contents of layers.
type keeper interface {
	// refresh returns the keeper for a new Inventory.
	refresh(ctx context.Context) (keeper, error)
	// check returns an error if a layer has no content, or if the driver has another number of layers below it. It does
	// not read the content.
	check(id string, below int) error
	// limit is the limit that the driver keeps for a layer, 0 if there is none.
	limit(id string) int64
	// open opens the content of a layer.
	open(ctx context.Context, id string) (*migrate.Content, error)
	// uses are directories below the root whose mounts are uses of layers.
	uses() []string
	// remove removes the contents of all layers.
	remove(ctx context.Context) error
}

// wholeTrees is a driver that keeps each layer as a whole tree: btrfs and vfs.
type wholeTrees struct {
	root    *rootdir.Dir
	dir     string // the directory of the trees
	volumes bool   // each is a subvolume of btrfs
}

func (w wholeTrees) refresh(context.Context) (keeper, error) { return w, nil }

func (w wholeTrees) check(id string, _ int) error { return isDir(w.root, path.Join(w.dir, id)) }

func (w wholeTrees) limit(id string) int64 {
	if !w.volumes {
		return 0
	}
	// Docker writes a limit down beside its qgroup, which is forgotten when quotas are turned off.
	data, err := w.root.ReadFile(path.Join("btrfs/quotas", id), maxLine)
	if err != nil {
		return 0
	}
	limit, err := parseSize(data)
	if err != nil {
		return 0
	}
	return limit
}

func (w wholeTrees) open(_ context.Context, id string) (*migrate.Content, error) {
	dir, err := w.root.OpenDir(path.Join(w.dir, id))
	if err != nil {
		return nil, typed(err)
	}
	c := &migrate.Content{Dir: dir, Form: migrate.Whole}
	if w.volumes && isSubvolume(dir) {
		c.Volume = w.root.Join(w.dir, id)
	}
	return c, nil
}

func (w wholeTrees) uses() []string { return []string{w.dir} }

func (w wholeTrees) remove(ctx context.Context) error {
	return removeTree(ctx, w.root, path.Dir(w.dir), w.volumes)
}

// isDir returns an error if there is no directory of that name.
func isDir(root *rootdir.Dir, name string) error {
	var dir *os.File
	dir, err := root.OpenDir(name)
	if err != nil {
		return typed(err)
	}
	return dir.Close()
}
