package tocontainerd

import (
	"context"
	"os"

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

func (t *Target) howOf(ctx context.Context, layer *migrate.Layer, content *migrate.Content) (migrate.How, int64, error) {
	if t.root == "" {
		return migrate.Copied, max(layer.Size, 0), nil // nobody says where the volumes are
	}
	to, err := detect.Probe(t.root)
	if err != nil {
		return "", 0, err
	}
	return fill.HowTo(ctx, t.offers != nil, to, layer, content)
}
