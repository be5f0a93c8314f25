package layerstore

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layerstream"
)

// Compare lists the changes of a layer since parent, or since an empty tree if that is "". The caller closes the result.
func (s *Store) Compare(ctx context.Context, v cowcommon.Volume, parent string, way cowcommon.Way) (*cowcommon.Comparison, error) {
	start := time.Now()
	c, err := s.Driver.Compare(ctx, v.Name, parent, way)
	if err != nil {
		return nil, err
	}
	how, reason := "asked the filesystem", ""
	if !c.Native {
		how, reason = "walked", c.Reason
	}
	if parent == "" {
		parent = "-"
	}
	s.Log.Info("compared", "layer", v.Name, "parent", parent, "way", how, "reason", reason,
		"changes", len(c.Changes), "took", time.Since(start).Round(10*time.Microsecond))
	return c, nil
}

// ImageOf returns a function that finds the image whose uppermost layer a volume is.
func (s *Store) ImageOf() func(volume string) layerstream.Image {
	images, err := s.Images.List()
	if err != nil {
		s.Log.Warn("images are left out whose records cannot be read", "error", err)
	}
	tops := make(map[string]layerstream.Image, len(images))
	for _, img := range images {
		tops[img.Top()] = layerstream.Image{Name: img.Name, ID: img.ID().String()}
	}
	return func(volume string) layerstream.Image { return tops[volume] }
}

// WhyNotSent says what to do about a layer with a shared root, for which live.Layers.Send returned err.
func (s *Store) WhyNotSent(ctx context.Context, v cowcommon.Volume, err error) error {
	if !errdefs.IsNotImplemented(err) {
		return err
	}
	if v, statErr := s.Driver.Backend().Stat(ctx, v.Name); statErr != nil || v.RootStyle != cowcommon.SharedRoot {
		return err
	}
	return fmt.Errorf("%w, so no stream of the filesystem holds it; to give it a root of its own, unmount it and run: cowshed create NAME --parent %s; or send its changes as a tar: cowshed diff %[2]s", err, v.Name)
}
