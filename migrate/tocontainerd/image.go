package tocontainerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

const (
	snapshotReference = "containerd.io/gc.ref.snapshot." // of a configuration, and the name of the snapshotter
	configReference   = "containerd.io/gc.ref.content.config"
	layerReference    = "containerd.io/gc.ref.content.l." // and a number

	// dockerParent is Docker's label of an image: the digest of the manifest of the image that it was built from.
	dockerParent = "org.mobyproject.image.parent"

	// untaggedName is Docker's name of an image without one, and the digest of its manifest.
	untaggedName = "moby-dangling@"

	// maxManifest bounds the memory for a manifest.
	maxManifest = 16 << 20
)

// MakeImage implements migrate.Target.
func (t *Target) MakeImage(ctx context.Context, image *migrate.Image) error {
	ctx, err := t.underLease(t.in(ctx), t.lease.ID)
	if err != nil {
		return err
	}
	manifest, config, err := t.describe(ctx, image)
	if err != nil {
		return err
	}
	configLabels := make(map[string]string)
	if diffIDs, err := diffIDsOf(image); err != nil {
		return err
	} else if len(diffIDs) > 0 {
		configLabels[snapshotReference+t.opts.Snapshotter] = identity.ChainID(diffIDs).String()
	}
	if err := t.putBlob(ctx, config.Config, image.Config, configLabels); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	labels := map[string]string{ImageLabel: image.ID.String(), configReference: config.Config.Digest.String()}
	for i, layer := range config.Layers {
		labels[layerReference+strconv.Itoa(i)] = layer.Digest.String()
	}
	if err := t.putBlob(ctx, manifest.Descriptor, manifest.data, labels); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for _, name := range t.namesOf(image, manifest.Digest) {
		if err := t.name(ctx, name, image, manifest.Descriptor); err != nil {
			return err
		}
	}
	return nil
}

// encoded is a blob and its descriptor.
type encoded struct {
	ocispec.Descriptor
	data []byte
}

// describe makes the manifest of an image, whose layers are there. It depends on the configuration and on the blobs of
// the layers alone.
func (t *Target) describe(ctx context.Context, image *migrate.Image) (encoded, ocispec.Manifest, error) {
	diffIDs, err := diffIDsOf(image)
	if err != nil {
		return encoded{}, ocispec.Manifest{}, err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: image.ID, Size: int64(len(image.Config))},
		Layers:    make([]ocispec.Descriptor, 0, len(diffIDs)),
	}
	for _, diffID := range diffIDs {
		layer, err := t.layerBlob(ctx, diffID)
		if err != nil {
			return encoded{}, ocispec.Manifest{}, err
		}
		m.Layers = append(m.Layers, layer)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return encoded{}, ocispec.Manifest{}, err
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return encoded{desc, data}, m, nil
}

// diffIDsOf reads the diff IDs in the configuration of an image. Returns errdefs.ErrDataLoss if the configuration is not
// that of the image.
func diffIDsOf(image *migrate.Image) ([]digest.Digest, error) {
	if digest.FromBytes(image.Config) != image.ID {
		return nil, fault.New(errdefs.ErrDataLoss, "its configuration has another digest")
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(image.Config, &config); err != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "configuration: %w", err)
	}
	if n := len(config.RootFS.DiffIDs); n != len(image.Layers) {
		return nil, fault.New(errdefs.ErrDataLoss, "its configuration has %d layers, and it has %d", n, len(image.Layers))
	}
	return config.RootFS.DiffIDs, nil
}

// namesOf lists the names under which containerd is to know an image.
func (t *Target) namesOf(image *migrate.Image, manifest digest.Digest) []string {
	switch {
	case len(image.Names) > 0:
		return image.Names
	case t.moby():
		return []string{untaggedName + manifest.String()}
	}
	return []string{manifest.String()}
}

// name gives an image a name. Returns errdefs.ErrAlreadyExists if another image has it.
func (t *Target) name(ctx context.Context, name string, image *migrate.Image, target ocispec.Descriptor) error {
	record := images.Image{Name: name, Target: target, Labels: map[string]string{ImageLabel: image.ID.String()}}
	if image.Parent != "" {
		record.Labels[ParentLabel] = image.Parent.String()
	}
	_, err := t.images.Create(ctx, record)
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	there, err := t.images.Get(ctx, name)
	switch {
	case err != nil:
		return err
	case there.Target.Digest == target.Digest:
		return nil
	case there.Labels[ImageLabel] != image.ID.String():
		return nameTaken(there)
	}
	_, err = t.images.Update(ctx, record, "target") // of a migration by another version, with other compressed layers
	return err
}

// tellParents tells Docker which images were made from which, now that all are there. Docker knows them by their manifests.
func (t *Target) tellParents(ctx context.Context) error {
	list, err := t.images.List(ctx, fmt.Sprintf("labels.%q", ParentLabel))
	if err != nil {
		return err
	}
	for _, record := range list {
		parent, err := t.manifestOf(ctx, digest.Digest(record.Labels[ParentLabel]))
		if errdefs.IsNotFound(err) {
			continue // it has not come along
		}
		if err == nil && record.Labels[dockerParent] != parent.Digest.String() {
			record.Labels[dockerParent] = parent.Digest.String()
			_, err = t.images.Update(ctx, record, "labels."+dockerParent)
		}
		if err != nil {
			return fmt.Errorf("parent of image %s: %w", record.Name, err)
		}
	}
	return nil
}

func nameTaken(there images.Image) error {
	return fault.New(errdefs.ErrAlreadyExists, "containerd has another image with the name %s (%s)", there.Name, there.Target.Digest)
}

// manifestOf finds the manifest that was made for an image. Returns errdefs.ErrNotFound if there is none.
func (t *Target) manifestOf(ctx context.Context, id digest.Digest) (found ocispec.Descriptor, err error) {
	filter := fmt.Sprintf("labels.%q==%q,labels.%q==%q", ImageLabel, id, configReference, id)
	err = t.content.Walk(ctx, func(info content.Info) error {
		if found.Digest == "" || info.Digest < found.Digest {
			found = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: info.Digest, Size: info.Size}
		}
		return nil
	}, filter)
	if err == nil && found.Digest == "" {
		err = fault.New(errdefs.ErrNotFound, "no manifest was made for image %s", id)
	}
	return found, err
}

// hasImage returns errdefs.ErrNotFound if an image or one of its names is not there.
func (t *Target) hasImage(ctx context.Context, image *migrate.Image) error {
	manifest, err := t.manifestOf(ctx, image.ID)
	if err != nil {
		return err
	}
	for _, name := range t.namesOf(image, manifest.Digest) {
		there, err := t.images.Get(ctx, name)
		if err != nil {
			return err
		}
		if there.Target.Digest != manifest.Digest {
			return fault.New(errdefs.ErrNotFound, "%s is another image", name)
		}
	}
	return nil
}

// verifyImage reads all of an image but its layers. Returns errdefs.ErrDataLoss if something is not as it was made.
func (t *Target) verifyImage(ctx context.Context, image *migrate.Image) error {
	if err := t.hasImage(ctx, image); err != nil {
		return err
	}
	there, err := t.manifestOf(ctx, image.ID)
	if err != nil {
		return err
	}
	data, err := t.readBlob(ctx, there)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return fault.New(errdefs.ErrDataLoss, "manifest: %w", err)
	}
	config, err := t.readBlob(ctx, manifest.Config)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	diffIDs, err := diffIDsOf(image)
	if err != nil {
		return err
	}
	if !slices.Equal(config, image.Config) || len(manifest.Layers) != len(diffIDs) {
		return fault.New(errdefs.ErrDataLoss, "the configuration or the number of layers is another one")
	}
	for i, diffID := range diffIDs {
		info, err := t.content.Info(ctx, manifest.Layers[i].Digest)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if info.Size != manifest.Layers[i].Size || info.Labels[uncompressedLabel] != diffID.String() {
			return fault.New(errdefs.ErrDataLoss, "layer %d is another one", i)
		}
	}
	if len(diffIDs) > 0 {
		_, err = t.snapshots.Stat(ctx, identity.ChainID(diffIDs).String())
	}
	return err
}

// readBlob reads a small blob. Returns errdefs.ErrDataLoss if it has another digest.
func (t *Target) readBlob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxManifest {
		return nil, fault.New(errdefs.ErrResourceExhausted, "blob of %d bytes", desc.Size)
	}
	data, err := content.ReadBlob(ctx, t.content, desc)
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(data) != desc.Digest {
		return nil, fault.New(errdefs.ErrDataLoss, "blob %s has another digest", desc.Digest)
	}
	return data, nil
}

// removeImage removes the names that an image was given. Its blobs are garbage then, unless others need them.
func (t *Target) removeImage(ctx context.Context, image *migrate.Image) error {
	list, err := t.images.List(ctx, fmt.Sprintf("labels.%q==%q", ImageLabel, image.ID))
	if err != nil {
		return err
	}
	var errs []error
	for _, record := range list {
		if err := t.images.Delete(ctx, record.Name); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete image %s: %w", record.Name, err))
		}
	}
	if manifest, err := t.manifestOf(ctx, image.ID); err == nil {
		errs = append(errs, t.letGo(ctx, "content", manifest.Digest.String()))
	}
	errs = append(errs, t.letGo(ctx, "content", image.ID.String()))
	return errors.Join(errs...)
}
