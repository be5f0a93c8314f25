package image

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/stream"
)

// Promotion is the content of a layer that becomes the uppermost layer of a new image. The other layers and the config are
// those of the image from which the layer was made. Without such an image, the new image has this layer alone.
type Promotion struct {
	Volume  string // has the content, and stays as it is meanwhile
	Name    string // of the layer, for the image's history
	Created time.Time
	Comment string     // for the image's history
	Epoch   *time.Time // as in ExportOptions
	Origin  *Origin    // of a container; nil: the image is in the store
}

// PromotedLayer is the kind of the Source of a Promotion.
const PromotedLayer Transport = "layer"

// ExportPromotion writes the new image to the place that ref names, and nothing to the store. Layers that an image in a layout or
// registry has are not written again. The errors are those of Export.
// Returns errdefs.ErrInvalidArgument if the layer is part of an image.
func (s *Store) ExportPromotion(ctx context.Context, p Promotion, ref Reference, opts ExportOptions) (*Exported, error) {
	opts.Epoch, opts.reuse = p.Epoch, true
	exported, err := s.exportPlanned(ctx, ref, opts, func() (*plan, error) { return s.promotionPlan(ctx, p) })
	if err != nil {
		return nil, fmt.Errorf("promote %s to %s: %w", p.Name, ref, err)
	}
	return exported, nil
}

// Promote makes the new image in the store, as Import does. The same content with the same layers below has the same diff
// ID, and is the same layer. The errors are those of Import. Returns errdefs.ErrInvalidArgument if the layer is part of an
// image.
func (s *Store) Promote(ctx context.Context, p Promotion, opts ImportOptions) (*Imported, error) {
	return s.PromoteInto(ctx, s, p, opts)
}

// PromoteInto is Promote into another store. The Promotion has an Origin, unless both are the same store.
func (s *Store) PromoteInto(ctx context.Context, into *Store, p Promotion, opts ImportOptions) (*Imported, error) {
	plan, err := s.promotionPlan(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("promote %s: %w", p.Name, err)
	}
	last := len(plan.layers) - 1
	src := &Source{Origin: Reference{Transport: PromotedLayer, Path: p.Name}.String(), Kind: PromotedLayer, below: plan.diffIDs()}
	if p.Origin != nil {
		for _, layer := range plan.layers[:last] {
			src.layers = append(src.layers, s.sourceOf(layer, p.Epoch))
		}
	}
	src.layers = append(src.layers, s.sourceOf(plan.layers[last], p.Epoch))
	src.describe = func(diffIDs []digest.Digest) ([]byte, error) {
		config, _, err := plan.makeConfig(diffIDs, p.Epoch)
		return config, err
	}
	return into.Import(ctx, src, opts)
}

// sourceOf is the tar of a layer: the stored one, or else the differences from the layer below.
func (s *Store) sourceOf(layer planLayer, epoch *time.Time) sourceLayer {
	if layer.stored != nil {
		return *layer.stored
	}
	return sourceLayer{size: -1, made: true, open: func(ctx context.Context) (io.ReadCloser, error) {
		write := func(ctx context.Context, w io.Writer) error { return s.writeDiff(ctx, w, layer, epoch) }
		return stream.New(ctx, write, func() error { return nil }), nil
	}}
}

// layer is the layer that the Promotion adds to the image, whose uppermost volume is base.
func (p Promotion) layer(base string) planLayer {
	return planLayer{top: p.Volume, base: base, created: p.Created, createdBy: "cowshed promote " + p.Name, comment: p.Comment}
}

// promotionPlan is the plan of the layer with all layers down to the first of an image as one.
func (s *Store) promotionPlan(ctx context.Context, p Promotion) (*plan, error) {
	if p.Origin != nil {
		return originPlan(p), nil
	}
	plan, err := s.layerPlan(ctx, s.readable(), p.Volume)
	if err != nil {
		return nil, err
	}
	images := len(plan.diffIDs())
	if images == len(plan.layers) {
		return nil, fault.New(errdefs.ErrInvalidArgument, "%s is part of image %s, and has no changes since: export that", p.Name, plan.name)
	}
	plan.name = p.Name
	plan.layers = append(plan.layers[:images:images], p.layer(plan.layers[images].base))
	return plan, nil
}
