package layerstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"

	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/snapshotter"
)

// Origins finds the images that containers were made from.
type Origins struct {
	Engines layerref.Resolver
	// Containerd connects to containerd.
	Containerd func() (*containerdapi.Services, error)
	// VolumeOf finds the volume of a snapshot, as for VolumeOf.
	VolumeOf func(ctx context.Context, namespace, key string) (string, error)
}

// Of finds the image of a container. The caller closes it. Returns errdefs.ErrNotFound if there is no such container or image, and
// errdefs.ErrFailedPrecondition if the root of the container is not on that image.
func (o Origins) Of(ctx context.Context, ref layerref.Reference) (_ *image.Origin, err error) {
	asking, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	c, err := o.Engines.Container(asking, ref)
	if err != nil {
		return nil, err
	}
	services, err := o.Containerd()
	if err != nil {
		return nil, err
	}
	origin, err := o.find(namespaces.WithNamespace(ctx, c.Namespace), c, services)
	if err != nil {
		return nil, errors.Join(err, services.Close())
	}
	origin.Close = services.Close
	return origin, nil
}

func (o Origins) find(ctx context.Context, c layerref.Container, services *containerdapi.Services) (*image.Origin, error) {
	parents, err := parentsOf(ctx, services.Snapshots(c.Snapshotter), c.Key)
	if err != nil {
		return nil, err
	}
	if c.Target == "" {
		named, err := services.Images.Get(ctx, c.Image)
		if err != nil {
			return nil, fmt.Errorf("image of the container: %w", err)
		}
		c.Target = named.Target.Digest
	}
	origin, err := image.FindOrigin(ctx, services.Content, c.Image, c.Target, parents)
	if err != nil {
		return nil, err
	}
	if parents[0] != "" {
		if origin.Base, err = o.VolumeOf(ctx, c.Namespace, parents[0]); err != nil {
			return nil, err
		}
	}
	return origin, o.setVolumes(ctx, c.Namespace, origin)
}

// parentsOf lists the names of snapshots that can be that of the image of a container: its parent, and below Docker's layer for the
// container the next. "" is that of an image without layers.
func parentsOf(ctx context.Context, s snapshots.Snapshotter, key string) ([]string, error) {
	info, err := s.Stat(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("snapshot of the container: %w", err)
	}
	parents := []string{info.Parent}
	if info.Parent == key+initSuffix {
		if info, err = s.Stat(ctx, info.Parent); err != nil {
			return nil, fmt.Errorf("snapshot of the container: %w", err)
		}
		parents = append(parents, info.Parent)
	}
	return parents, nil
}

// initSuffix ends the key of Docker's layer between an image and a container.
const initSuffix = "-init"

// setVolumes finds the volumes of layers whose blobs containerd has discarded.
func (o Origins) setVolumes(ctx context.Context, namespace string, origin *image.Origin) error {
	var chain []digest.Digest
	below := ""
	for i := range origin.Layers {
		layer := &origin.Layers[i]
		chain = append(chain, layer.DiffID)
		upper := i+1 < len(origin.Layers) && origin.Layers[i+1].Open == nil
		if layer.Open != nil && !upper {
			below = ""
			continue
		}
		volume, err := o.VolumeOf(ctx, namespace, identity.ChainID(append([]digest.Digest(nil), chain...)).String())
		if err != nil {
			return fmt.Errorf("layer %s: %w", layer.DiffID, err)
		}
		if layer.Open == nil {
			layer.Volume, layer.Below = volume, below
		}
		below = volume
	}
	return nil
}

// originOf finds the image of the container that a request calls name, or of which a volume is a fork.
func (s *Store) originOf(ctx context.Context, v cowcommon.Volume, name string) (_ *image.Origin, err error) {
	ref, err := layerref.Parse(name)
	var from *forkedContainer // nil: the request names the container
	if err != nil || ref.Kind == layerref.Fork {
		if from, err = s.containerOf(ctx, v); err != nil {
			return nil, err
		}
		ref = from.ref
	}
	if s.Origins == nil {
		return nil, fault.Said(errdefs.ErrNotImplemented, "the images of containers are not known here")
	}
	origin, err := s.Origins.Of(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("image of %s: %w", name, err)
	}
	if from != nil {
		if err := s.checkOrigin(ctx, v, *from, origin.Base); err != nil {
			return nil, errors.Join(err, origin.Close())
		}
	}
	return origin, nil
}

// forkedContainer is the container from which a layer was forked, as it was then.
type forkedContainer struct {
	ref    layerref.Reference
	volume string // no other container gets one of that name
	base   string // volume of the image, "" for none
}

// maxForkDepth is how many forks of forks are followed to a container.
const maxForkDepth = 10_000

// containerOf finds the container of which a volume is a fork or a moment. It follows the records of moments alone: another layer may
// have the name of a former fork.
func (s *Store) containerOf(ctx context.Context, v cowcommon.Volume) (*forkedContainer, error) {
	volume, base, err := s.lineOf(ctx, v)
	for range maxForkDepth {
		switch {
		case err != nil:
			return nil, fmt.Errorf("container from which %s was forked: %w", s.Shown(v.Name), err)
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case snapshotter.IsVolumeName(volume):
			return s.forkedFrom(v, volume, base)
		case !live.IsMoment(base):
			return nil, s.unknownContainer(v)
		}
		var m live.Moment
		if m, err = s.Live.Moment(base); errdefs.IsNotFound(err) {
			return nil, s.unknownContainer(v)
		}
		volume, base = m.Layer, m.Base
	}
	return nil, s.unknownContainer(v)
}

// lineOf returns the layer of which a volume is a moment, or the volume itself, and from where its changes count.
func (s *Store) lineOf(ctx context.Context, v cowcommon.Volume) (layer, base string, err error) {
	if live.IsMoment(v.Name) {
		m, err := s.Live.Moment(v.Name)
		return m.Layer, m.Base, err
	}
	base, err = s.Live.Base(ctx, v)
	return v.Name, base, err
}

// forkedFrom describes a container by the name of its volume.
func (s *Store) forkedFrom(v cowcommon.Volume, volume, base string) (*forkedContainer, error) {
	key, whole := snapshotter.KeyOfVolume(volume)
	namespace, own := snapshotter.SplitKey(key)
	if !whole || namespace == "" {
		return nil, s.unknownContainer(v)
	}
	ref := layerref.Reference{Kind: layerref.Containerd, Namespace: namespace, Name: own}
	return &forkedContainer{ref: ref, volume: volume, base: base}, nil
}

func (s *Store) unknownContainer(v cowcommon.Volume) error {
	return fault.Said(errdefs.ErrFailedPrecondition, "the container from which %s was forked is not known: use cowshed export", s.Shown(v.Name))
}

// checkOrigin makes sure that an image is that of the container from which a volume was forked. base is the volume of the image. Another
// container may have the name now.
func (s *Store) checkOrigin(ctx context.Context, v cowcommon.Volume, from forkedContainer, base string) error {
	if base != "" && base == from.base {
		return nil
	}
	now, err := s.Origins.VolumeOf(ctx, from.ref.Namespace, from.ref.Name)
	if err != nil {
		return fmt.Errorf("container from which %s was forked: %w", s.Shown(v.Name), err)
	}
	if now != from.volume {
		return fault.Said(errdefs.ErrFailedPrecondition, "container %s is not the one from which %s was forked, and has another image: use cowshed export",
			from.ref.Name, s.Shown(v.Name))
	}
	return nil
}
