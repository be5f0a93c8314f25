package layerstore

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/closers"
	"github.com/cowshed/cowshed/internal/image"
)

// PromotionTarget reads the place of a promotion: a destination, or the name of an image in the store, for which ref is the zero
// Reference.
func PromotionTarget(to string) (ref image.Reference, err error) {
	if image.NamesDestination(to) {
		return image.ParseDestination(to)
	}
	return ref, image.CheckName(to)
}

// Promotion is a layer or snapshot that is kept as it is, to be promoted.
type Promotion struct {
	image.Promotion
	closers closers.Closers
}

// Close ends the use of the layer's moment and of its image.
func (p *Promotion) Close() error { return p.closers.Close() }

// Promotion keeps a layer or snapshot as it is now, to be promoted. The request calls the layer name. The image of a container is
// found first, so that the container is held for a moment only. The caller closes the Promotion.
func (s *Store) Promotion(ctx context.Context, v cowcommon.Volume, name, comment string, epoch *time.Time) (_ *Promotion, err error) {
	user, err := s.UserOf(v)
	if err != nil {
		return nil, err
	}
	if user != "" {
		return nil, fault.Said(errdefs.ErrInvalidArgument, "%s is part of %s, and has no changes since: use cowshed export", name, user)
	}
	p := &Promotion{Promotion: image.Promotion{Comment: comment, Epoch: epoch}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if s.Containers != nil {
		if p.Origin, err = s.originOf(ctx, v, name); err != nil {
			return nil, err
		}
		p.closers.Add(p.Origin.Close)
	}
	still, err := s.Live.Still(ctx, v.Name)
	if err != nil {
		return nil, err
	}
	p.closers.Add(still.Close)
	p.Volume, p.Name, p.Created = still.Volume, s.Shown(still.Layer), still.Time
	if still.Moment.Name != "" {
		p.Name += "@" + still.Moment.Name
	}
	return p, nil
}

// ExportPromotion writes the new image of a Promotion to a place.
func (s *Store) ExportPromotion(ctx context.Context, p *Promotion, to image.Reference, opts image.ExportOptions) (*image.Exported, error) {
	opts.Containerd = s.Containerd
	return s.Images.ExportPromotion(ctx, p.Promotion, to, opts)
}

// Promote makes the new image of a Promotion in a store: in this one, or that of a container in the command's own.
func (s *Store) Promote(ctx context.Context, into *Store, p *Promotion, opts image.ImportOptions) (*image.Imported, error) {
	if s.Containers != nil && into.Containers != nil {
		return nil, fault.New(errdefs.ErrInvalidArgument, "images are not made among the volumes of containers")
	}
	return s.Images.PromoteInto(ctx, into.Images, p.Promotion, opts)
}
