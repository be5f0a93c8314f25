package tocontainerd

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/fill"
)

// copy makes dst, which has the tree of the layer below, the tree of the layer.
func (m making) copy(ctx context.Context, dst *os.File) error {
	_, err := fill.Into(ctx, dst, m.from, m.opts.Logger)
	return err
}

// BlobSize implements migrate.Target. Blobs are compressed, and so smaller than their layers.
func (t *Target) BlobSize(ctx context.Context, layer *migrate.Layer) (int64, error) {
	if layer.Kind != migrate.ImageLayer || !t.needsOf(layer.ID).blob {
		return 0, nil
	}
	_, err := t.layerBlob(t.in(ctx), layer.DiffID)
	if errdefs.IsNotFound(err) {
		return max(layer.Size, 0), nil
	}
	return 0, err
}

// checkSpace returns an ENOSPC error if the layers that are to be made have no room where the volumes are. Blobs do not
// count: how far they are compressed is not known, and containerd keeps them elsewhere.
func (t *Target) checkSpace(ctx context.Context, source migrate.Source, inv *migrate.Inventory) error {
	if source == nil {
		return nil
	}
	has := func(layer *migrate.Layer) (bool, error) {
		if needs := t.needsOf(layer.ID); layer.Kind == migrate.ImageLayer && !needs.snapshot {
			return true, nil
		}
		_, err := t.find(ctx, layer)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	}
	return fill.CheckSpace(ctx, t.hasRoom, inv, has, migrate.NewForecast(source, t.How))
}

// hasRoom returns an ENOSPC error if the volumes have less space than is needed. Cowshed knows that if its root does not tell.
func (t *Target) hasRoom(ctx context.Context, needed uint64) error {
	err := t.checkRoom(ctx, needed)
	switch {
	case errdefs.IsResourceExhausted(err):
		return fmt.Errorf("%w: %w", err, syscall.ENOSPC)
	case !errdefs.IsNotImplemented(err):
		return err
	case t.root == "":
		return nil
	}
	return fill.HasRoomAt(t.root, needed)
}

// checkRoom is snapshotter.Snapshotter.CheckRoom.
func (t *Target) checkRoom(ctx context.Context, needed uint64) error {
	if t.offers == nil {
		return fault.New(errdefs.ErrNotImplemented, "this target does not measure space")
	}
	return t.offers.CheckRoom(ctx, needed)
}

// volumesRoot is the root if it is on the filesystem of the volumes, else "".
func (t *Target) volumesRoot(ctx context.Context) (string, error) {
	err := t.checkRoom(ctx, 0)
	if errdefs.IsNotImplemented(err) {
		return t.root, nil
	}
	return "", err
}

// How implements migrate.Target.
func (t *Target) How(ctx context.Context, layer *migrate.Layer, content *migrate.Content, below migrate.Coming) (migrate.How, int64, error) {
	if err := t.checkOwner(t.places[layer.ID]); err != nil {
		return "", 0, err
	}
	parent := ""
	if layer.Parent != "" && below.How == "" {
		p, err := t.placeOf(t.in(ctx), layer.Parent)
		if err != nil {
			return "", 0, err
		}
		parent = p.name
	}
	root, err := t.volumesRoot(ctx)
	if err != nil {
		return "", 0, err
	}
	return fill.HowTo(ctx, root, layer, content, below, func(ctx context.Context, _, planned string) error {
		if t.offers == nil {
			return fault.New(errdefs.ErrNotImplemented, "this target takes no offers")
		}
		return t.offers.CheckOffer(ctx, t.opts.Namespace, parent, content.Volume, planned)
	})
}
