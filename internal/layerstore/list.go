package layerstore

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// Sweep removes expired forks, and moments that nothing needs, before layers or snapshots are listed, or
// after layers were removed. It logs an error.
func (s *Store) Sweep(ctx context.Context) {
	if s.ReadOnly {
		return
	}
	if err := s.Live.Sweep(ctx); err != nil {
		s.Log.Warn("expired forks or moments stay", "error", err)
	}
}

// List describes all layers, sorted by name. may decides which volumes are listed; nil: all.
func (s *Store) List(ctx context.Context, may func(volume string) bool) ([]api.Layer, error) {
	tops := s.tops()
	layers := []api.Layer{}
	for v, err := range s.Driver.Backend().Volumes(ctx) {
		if err != nil {
			return nil, err
		}
		if live.IsMoment(v.Name) || s.IsContainer(v) || may != nil && !may(v.Name) {
			continue
		}
		l, err := s.describe(ctx, v)
		if errdefs.IsNotFound(err) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		l.Image = tops[v.Name]
		layers = append(layers, l)
	}
	slices.SortFunc(layers, func(a, b api.Layer) int { return strings.Compare(a.Name, b.Name) })
	return layers, nil
}

// Describe describes a layer.
func (s *Store) Describe(ctx context.Context, v cowcommon.Volume) (api.Layer, error) {
	l, err := s.describe(ctx, v)
	l.Image = s.tops()[v.Name]
	return l, err
}

// tops are the names of images by their uppermost layers.
func (s *Store) tops() map[string]string {
	images, err := s.Images.List()
	if err != nil { // the layers are there all the same
		s.Log.Warn("image records cannot be read", "error", err)
	}
	tops := make(map[string]string)
	for _, img := range images {
		tops[img.Top()] = img.Name
	}
	return tops
}

func (s *Store) describe(ctx context.Context, v cowcommon.Volume) (api.Layer, error) {
	l := api.Layer{
		Name: s.Shown(v.Name), Parent: v.Parent, Sealed: v.Sealed, Limit: v.Limit.Bytes, Created: v.Created.UTC(), Details: v.Details,
	}
	if v.Limit.Bytes != 0 {
		l.LimitScope = v.Limit.Scope.String()
	}
	if m, err := s.Live.ForkedFrom(ctx, v); err == nil {
		l.ForkOf = m.Layer
		for _, fork := range m.Forks {
			if fork.Name == v.Name {
				l.Expires, l.Labels = fork.Expires, fork.Labels
			}
		}
	} else if !errdefs.IsNotFound(err) { // the layer is there all the same
		s.Log.Warn("a moment's record cannot be read", "layer", v.Name, "error", err)
	}
	var err error
	l.Usage, err = s.usageIfKept(ctx, v.Name)
	return l, err
}

// usageIfKept is how many bytes a volume holds itself, nil where the filesystem does not keep count.
func (s *Store) usageIfKept(ctx context.Context, volume string) (*uint64, error) {
	usage, err := cowcommon.Usage(ctx, s.Driver.Backend(), volume)
	switch {
	case err == nil:
		return &usage.Bytes, nil
	case errdefs.IsNotImplemented(err):
		return nil, nil
	}
	return nil, err
}

// Usage is how much a layer holds. Where the filesystem does not keep count, it is the sum of the sizes of changed files.
func (s *Store) Usage(ctx context.Context, v cowcommon.Volume) (api.Usage, error) {
	usage, err := s.Driver.Usage(ctx, v.Name)
	return api.Usage{Name: s.Shown(v.Name), Bytes: usage.Bytes, Total: usage.Total, Limit: v.Limit.Bytes}, err
}
