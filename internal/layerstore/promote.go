package layerstore

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/live"
)

// PromotionTarget reads the place of a promotion: a destination, or the name of an image in the store, for which ref is the zero
// Reference.
func PromotionTarget(to string) (ref image.Reference, err error) {
	if image.NamesDestination(to) {
		return image.ParseDestination(to)
	}
	return ref, image.CheckName(to)
}

// Promotion keeps a layer or snapshot as it is now, to be promoted. The request calls the layer name. The caller closes
// the Still.
func (s *Store) Promotion(ctx context.Context, v cowcommon.Volume, name, comment string, epoch *time.Time) (p image.Promotion, _ *live.Still, err error) {
	user, err := s.UserOf(v)
	if err != nil {
		return p, nil, err
	}
	if user != "" {
		return p, nil, fault.Said(errdefs.ErrInvalidArgument, "%s is part of %s, and has no changes since: use cowshed export", name, user)
	}
	still, err := s.Live.Still(ctx, v.Name)
	if err != nil {
		return p, nil, err
	}
	p = image.Promotion{Volume: still.Volume, Name: still.Layer, Created: still.Time, Comment: comment, Epoch: epoch}
	if still.Moment.Name != "" {
		p.Name += "@" + still.Moment.Name
	}
	return p, still, nil
}
