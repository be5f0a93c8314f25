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

// overlays are the drivers overlay2 and fuse-overlayfs. A layer is a directory:
//
//	diff    the changes
//	link    a short name of the layer: a symbolic link l/NAME leads to diff
//	lower   the short names of the layers below, nearest first, as "l/NAME:l/NAME"; a base has none
//
// A power cut may leave empty files, since Docker has not always synced them. The layerdb knows the parents too, so that
// only a file that says something else is an error.
type overlays struct {
	root   *rootdir.Dir
	dir    string
	log    *slog.Logger
	stacks stacks // of the layers that have been checked
}

func (o overlays) refresh(context.Context) (keeper, error) {
	o.stacks = stacks{}
	return o, nil
}

func (o overlays) check(id, parent string) error {
	if err := isDir(o.root, path.Join(o.dir, id, "diff")); err != nil {
		return err
	}
	lower, err := o.read(id, "lower")
	if err != nil {
		return err
	}
	below, known := o.stacks.of(parent)
	switch {
	case parent == "" && lower != "":
		return fault.New(errdefs.ErrDataLoss, "the driver keeps layers below it, and the layerdb none")
	case parent == "":
	case !known || lower == "":
		o.log.Warn("docker: files link or lower are missing or empty, the layerdb is believed", "layer", id, "parent", parent)
	case stackOf(strings.Split(lower, ":")) != below:
		return fault.New(errdefs.ErrDataLoss, "the driver keeps other layers below it than the layerdb")
	}
	link, err := o.read(id, "link")
	if err == nil && link != "" {
		o.stacks.put(id, parent, "l/"+link)
	}
	return err
}

// read reads a file of a layer, "" if it is missing.
func (o overlays) read(id, name string) (string, error) {
	data, err := o.root.ReadFile(path.Join(o.dir, id, name), maxParents)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(data)), err
}

func (overlays) limit(string) int64 { return 0 }

func (o overlays) open(_ context.Context, id string) (*migrate.Content, error) {
	dir, err := o.root.OpenDir(path.Join(o.dir, id, "diff"))
	if err != nil {
		return nil, typed(err)
	}
	return &migrate.Content{Dir: dir, Form: migrate.Overlay}, nil
}

func (o overlays) uses() []string { return []string{o.dir} }

func (o overlays) remove(ctx context.Context) error { return removeTree(ctx, o.root, o.dir, false) }
