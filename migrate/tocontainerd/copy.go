package tocontainerd

import (
	"context"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/fill"
)

// copy makes dst, which has the tree of the layer below, the tree of the layer.
func (m making) copy(ctx context.Context, dst *os.File) error {
	_, err := fill.Into(ctx, dst, m.from, m.opts.Logger)
	return err
}

// How implements migrate.Target. The bytes are those of the data, and of the blob of a layer of an image: at most the size
// of the layer.
func (t *Target) How(ctx context.Context, layer *migrate.Layer, content *migrate.Content) (migrate.How, int64, error) {
	how, bytes, err := t.howOf(ctx, layer, content)
	if layer.Kind == migrate.ImageLayer && layer.Size > 0 {
		bytes += layer.Size
	}
	return how, bytes, err
}

// adopts reports whether Cowshed can adopt volumes on its filesystem.
func (t *Target) adopts(to detect.Filesystem) bool { return t.offers != nil && fill.Adopts(to) }

// checkSpace returns an ENOSPC error if the layers that are to be made have no room where the volumes are. Blobs do not
// count: how far they are compressed is not known, and containerd keeps them elsewhere.
func (t *Target) checkSpace(ctx context.Context, source migrate.Source, inv *migrate.Inventory) error {
	if t.root == "" || source == nil {
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
	return fill.CheckSpace(ctx, t.root, source, inv, has, func(layer *migrate.Layer, content *migrate.Content) (migrate.How, int64, error) {
		return t.howOf(ctx, layer, content)
	})
}

func (t *Target) howOf(ctx context.Context, layer *migrate.Layer, content *migrate.Content) (migrate.How, int64, error) {
	if t.root == "" {
		return migrate.Copied, max(layer.Size, 0), nil // nobody says where the volumes are
	}
	to, err := detect.Probe(t.root)
	if err != nil {
		return "", 0, err
	}
	return fill.HowTo(ctx, t.adopts(to), to, layer, content)
}
