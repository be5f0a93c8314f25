package dockerroot

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// linkDir is the directory of short names.
const linkDir = "l"

// overlays are the drivers overlay2 and fuse-overlayfs. A layer is a directory:
//
//	diff    the changes
//	link    a short name of the layer: a symbolic link l/NAME leads to diff
//	lower   the short names of the layers below, nearest first, as "l/NAME:l/NAME"; a base has none
//
// A power cut may leave empty files, since Docker has not always synced them. The layerdb knows the parents too.
type overlays struct {
	root *rootdir.Dir
	dir  string
	log  *slog.Logger
}

func (o overlays) refresh(context.Context) (keeper, error) { return o, nil }

func (o overlays) check(id string, below int) error {
	if err := isDir(o.root, path.Join(o.dir, id, "diff")); err != nil {
		return err
	}
	lower, err := o.root.ReadFile(path.Join(o.dir, id, "lower"), maxParents)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names := strings.FieldsFunc(strings.TrimSpace(string(lower)), func(r rune) bool { return r == ':' })
	return checkBelow(o.log, id, len(names), below)
}

// checkBelow checks the driver's list of the layers below a layer, which may be lost.
//
// Their number must be right, but not their names: BuildKit may make a layer that is there already. Docker then keeps both,
// and has the older one in the layerdb, with the same diff ID. Layers made above the newer one name it.
func checkBelow(log *slog.Logger, id string, listed, below int) error {
	switch listed {
	case below:
	case 0:
		log.Warn("docker: the driver's list of the layers below is missing or empty, the layerdb is believed", "layer", id)
	default:
		return fault.New(errdefs.ErrDataLoss, "the driver has %d layers below it, and the layerdb %d", listed, below)
	}
	return nil
}

func (overlays) limit(string) int64 { return 0 }

func (o overlays) open(_ context.Context, id string) (*migrate.Content, error) {
	dir, err := o.root.OpenDir(path.Join(o.dir, id, "diff"))
	if err != nil {
		return nil, typed(err)
	}
	return &migrate.Content{Dir: dir, Form: migrate.Overlay}, nil
}

// uses has the short names too: the driver mounts by them, relative to its directory, if there are many.
func (o overlays) uses() []string { return []string{o.dir, path.Join(o.dir, linkDir)} }

func (o overlays) remove(ctx context.Context) error { return removeTree(ctx, o.root, o.dir, false) }
