package layerstore

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/snapshotter"
)

// minPrefix is how much of the name of an image's layer has to be given at least.
const minPrefix = 6

// Layer finds the layer that name stands for: one of that name, or the uppermost one of an image of that
// name, or the only layer of an image whose name starts so. LAYER@SNAPSHOT stands for the volume of a snapshot.
func (s *Store) Layer(ctx context.Context, name string) (cowcommon.Volume, error) {
	if s.Containers != nil {
		return s.containerLayer(ctx, name)
	}
	v, err := s.Driver.Backend().Stat(ctx, name)
	if err == nil || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		return v, err
	}
	if img, err := s.Images.Get(name); err == nil {
		if img.Top() == "" {
			return v, fault.Said(errdefs.ErrInvalidArgument, "image %s has no layers", name)
		}
		return s.Driver.Backend().Stat(ctx, img.Top())
	}
	if layer, snapshot, ok := live.Cut(name); ok {
		return s.snapshotVolume(ctx, layer, snapshot)
	}
	if checkErr := cowcommon.CheckID(name); checkErr != nil {
		return v, checkErr
	}
	return s.layerByPrefix(ctx, name)
}

// Prefixes that tell an image from a layer or snapshot of the same name, where a name may stand for either.
const (
	imagePrefix = "image:"
	layerPrefix = "layer:"
)

// ImageOrLayer finds the image of a name in full, or else the layer that Layer finds. Returns ErrInvalidArgument if there are
// both. The prefixes image: and layer: choose, unless an image has the whole name.
func (s *Store) ImageOrLayer(ctx context.Context, name string) (*image.Image, cowcommon.Volume, error) {
	img, err := s.Images.Get(name)
	if err == nil {
		return img, cowcommon.Volume{}, s.onlyImage(ctx, name)
	}
	if named, ok := strings.CutPrefix(name, imagePrefix); ok {
		img, err = s.Images.Get(named)
		return img, cowcommon.Volume{}, err
	}
	if named, ok := strings.CutPrefix(name, layerPrefix); ok {
		v, err := s.layerNamed(ctx, named, s.LayerAlone)
		return nil, v, err
	}
	v, err := s.Layer(ctx, name)
	return nil, v, err
}

// onlyImage returns ErrInvalidArgument if an image's name is that of a layer or snapshot too, in full.
func (s *Store) onlyImage(ctx context.Context, name string) error {
	_, err := s.layerNamed(ctx, name, s.Driver.Backend().Stat)
	switch {
	case err == nil:
		return fault.Said(errdefs.ErrInvalidArgument, "%s is the name of an image and of a layer: say %[2]s%[1]s or %[3]s%[1]s", name, imagePrefix, layerPrefix)
	case errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err): // few names of images can be a layer's
		return nil
	}
	return err
}

// layerNamed finds a snapshot, or else a layer by find.
func (s *Store) layerNamed(ctx context.Context, name string, find func(context.Context, string) (cowcommon.Volume, error)) (cowcommon.Volume, error) {
	if layer, snapshot, ok := live.Cut(name); ok {
		return s.snapshotVolume(ctx, layer, snapshot)
	}
	return find(ctx, name)
}

// snapshotVolume finds the volume of a snapshot.
func (s *Store) snapshotVolume(ctx context.Context, layer, snapshot string) (cowcommon.Volume, error) {
	v, err := s.LayerAlone(ctx, layer)
	if err != nil {
		return v, err
	}
	return s.Live.Find(ctx, v.Name+"@"+snapshot)
}

func (s *Store) layerByPrefix(ctx context.Context, prefix string) (found cowcommon.Volume, err error) {
	notFound := fault.Said(errdefs.ErrNotFound, "no layer or image %s (cowshed ls lists layers, cowshed images lists images)", prefix)
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return found, notFound
	}
	for v, err := range s.Driver.Backend().Volumes(ctx) {
		if err != nil {
			return found, err
		}
		if !image.IsLayerName(v.Name) || !strings.HasPrefix(v.Name, prefix) {
			continue
		}
		if found.Name != "" {
			return found, fault.Said(errdefs.ErrInvalidArgument, "%s is the start of several layers' names", prefix)
		}
		found = v
	}
	if found.Name == "" {
		return found, notFound
	}
	return found, nil
}

// LayerAlone finds the layer of that name, or the only layer of an image whose name starts so. The name of an
// image stands for no layer here.
func (s *Store) LayerAlone(ctx context.Context, name string) (cowcommon.Volume, error) {
	if live.IsMoment(name) || strings.Contains(name, "@") {
		return cowcommon.Volume{}, fault.Said(errdefs.ErrInvalidArgument, "%s is not the name of a layer; snapshots are removed with: cowshed snapshot rm", name)
	}
	if s.Containers != nil {
		return s.containerLayer(ctx, name)
	}
	v, err := s.Driver.Backend().Stat(ctx, name)
	if errdefs.IsNotFound(err) {
		v, err = s.layerByPrefix(ctx, name)
	}
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		if _, imageErr := s.Images.Get(name); imageErr == nil {
			err = fault.Said(errdefs.ErrNotFound, "there is no layer %s, but an image: remove the image with cowshed rmi %[1]s", name)
		}
	}
	return v, err
}

// LayerOf finds a layer that is no snapshot and part of no image, for operations that change it.
func (s *Store) LayerOf(ctx context.Context, name string) (cowcommon.Volume, error) {
	v, err := s.LayerAlone(ctx, name)
	if err != nil {
		return v, err
	}
	user, err := s.UserOf(v)
	if err != nil {
		return v, err
	}
	if user != "" {
		return v, fault.Said(errdefs.ErrFailedPrecondition, "layer %s is part of %s; make a layer from it: cowshed create NAME --parent %s",
			ShortName(v.Name), user, name)
	}
	return v, nil
}

// Parent finds the other side of a comparison: the named layer, or else the volume from which the layer's changes count. whole
// stands for an empty tree.
func (s *Store) Parent(ctx context.Context, layer cowcommon.Volume, named string, whole bool) (string, error) {
	if whole {
		return "", nil
	}
	if named == "" {
		return s.Live.Base(ctx, layer)
	}
	v, err := s.Layer(ctx, named)
	return v.Name, err
}

// UserOf names the image that a layer is part of, "" if it is part of none.
func (s *Store) UserOf(v cowcommon.Volume) (string, error) {
	users, err := s.Images.Users()
	return users[v.Name], err
}

// containerLayer finds the volume that a reference names: that of a container, a fork or a snapshot. The volume's own name is
// good too.
func (s *Store) containerLayer(ctx context.Context, name string) (cowcommon.Volume, error) {
	if !layerref.Is(name) {
		return s.Driver.Backend().Stat(ctx, name)
	}
	layer := layerref.Layer(name)
	v, err := s.Driver.Backend().Stat(ctx, s.Containers[layer])
	if err != nil || layer == name {
		return v, err
	}
	return s.Live.Find(ctx, v.Name+name[len(layer):])
}

// IsContainer reports whether a name is a reference to a container. The name of an image in the store of a root, such as docker:27,
// is none.
func IsContainer(root, name string, log *slog.Logger) bool {
	if !layerref.Is(name) {
		return false
	}
	_, err := image.NewStore(filepath.Join(root, ImagesDir), nil, log).Get(name)
	return errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err)
}

// IsContainer reports whether a volume is the daemon's: that of a container or an image, and not a fork.
func (s *Store) IsContainer(v cowcommon.Volume) bool {
	return s.Containers != nil && snapshotter.IsVolumeName(v.Name)
}

// Shown is the name of a layer as requests name it.
func (s *Store) Shown(name string) string {
	if s.Containers == nil || live.IsMoment(name) {
		return name
	}
	for reference, volume := range s.Containers {
		if volume == name {
			return reference
		}
	}
	if snapshotter.IsVolumeName(name) {
		return name
	}
	return string(layerref.Fork) + ":" + name
}
