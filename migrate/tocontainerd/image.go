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

	// criLabel is a label of each name that containerd's plugin for Kubernetes has seen, and of one more for the image: its ID.
	criLabel   = "io.cri-containerd.image"
	criManaged = "managed"

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
	all, err := t.known(ctx)
	if err != nil {
		return err
	}
	note(all.manifests, image.ID, manifest.Descriptor)
	names, err := t.namesFor(ctx, image, manifest.Digest)
	if err != nil {
		return err
	}
	for _, name := range names {
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

// namesFor lists the names under which containerd is to know the manifest that was made for an image. A name that the
// same image has already, by a manifest of others, stays with that.
func (t *Target) namesFor(ctx context.Context, image *migrate.Image, manifest digest.Digest) ([]string, error) {
	var names []string
	for _, name := range image.Names {
		there, err := t.images.Get(ctx, name)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		if err == nil && there.Target.Digest != manifest && !isNamedFor(there, image) {
			same, err := t.hasConfig(ctx, there.Target, image.ID, maxNesting)
			if err != nil {
				return nil, err
			}
			if same {
				continue
			}
		}
		names = append(names, name)
	}
	switch {
	case len(names) > 0:
		return names, nil
	case t.moby():
		return []string{untaggedName + manifest.String()}, nil
	}
	return []string{manifest.String()}, nil
}

// isNamedFor reports whether a migration has given an image that name.
func isNamedFor(record images.Image, image *migrate.Image) bool {
	return record.Labels[TagLabel] == record.Name && record.Labels[ImageLabel] == image.ID.String()
}

// maxNesting is how many indexes can be around a manifest.
const maxNesting = 3

// hasConfig reports whether an image has that configuration, or one of the images in an index.
func (t *Target) hasConfig(ctx context.Context, desc ocispec.Descriptor, config digest.Digest, nesting int) (bool, error) {
	data, err := t.readBlob(ctx, desc)
	if errdefs.IsNotFound(err) {
		return false, nil // an index lists images that were not pulled
	}
	if err != nil {
		return false, err
	}
	var m struct {
		Config    ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return false, nil //nolint:nilerr // it is something else
	}
	if m.Config.Digest == config {
		return true, nil
	}
	for _, desc := range m.Manifests {
		if nesting == 0 {
			break
		}
		if is, err := t.hasConfig(ctx, desc, config, nesting-1); is || err != nil {
			return is, err
		}
	}
	return false, nil
}

// name gives an image a name. Returns errdefs.ErrAlreadyExists if another image has it.
func (t *Target) name(ctx context.Context, name string, image *migrate.Image, target ocispec.Descriptor) error {
	record := images.Image{Name: name, Target: target, Labels: map[string]string{ImageLabel: image.ID.String(), TagLabel: name}}
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
	case !isNamedFor(there, image):
		return t.nameTaken(there)
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

func (t *Target) nameTaken(there images.Image) error {
	remove := "docker rmi " + there.Name
	if !t.moby() {
		remove = fmt.Sprintf("ctr --namespace %s images rm %s", t.opts.Namespace, there.Name)
	}
	return fault.New(errdefs.ErrAlreadyExists, "containerd has another image with the name %s (%s): give that one another name, and then %s",
		there.Name, there.Target.Digest, remove)
}

// manifestOf finds the manifest that was made for an image. Returns errdefs.ErrNotFound if there is none.
func (t *Target) manifestOf(ctx context.Context, id digest.Digest) (ocispec.Descriptor, error) {
	found, err := t.findBlob(ctx, manifestsOf, id)
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
	names, err := t.namesFor(ctx, image, manifest.Digest)
	if err != nil {
		return err
	}
	for _, name := range names {
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

// removeImage removes the names that the migration has given an image, and the name for Kubernetes. Other names for it stay,
// and so do names that are another image's by now. Its blobs are garbage then, unless others need them.
func (t *Target) removeImage(ctx context.Context, image *migrate.Image) error {
	list, err := t.images.List(ctx, fmt.Sprintf("labels.%q==%q", ImageLabel, image.ID))
	if err != nil {
		return err
	}
	var errs []error
	for _, record := range list {
		ours, err := t.isOurs(ctx, record, image)
		if err != nil {
			errs = append(errs, err)
		}
		if !ours {
			continue
		}
		errs = append(errs, t.removeName(ctx, record))
	}
	errs = append(errs, t.removeReference(ctx, image))
	if manifest, err := t.manifestOf(ctx, image.ID); err == nil {
		errs = append(errs, t.letGo(ctx, "content", manifest.Digest.String()))
	}
	errs = append(errs, t.letGo(ctx, "content", image.ID.String()))
	return errors.Join(errs...)
}

// isOurs reports whether the migration has given an image its name, and it has that manifest still.
func (t *Target) isOurs(ctx context.Context, record images.Image, image *migrate.Image) (bool, error) {
	if !isNamedFor(record, image) {
		return false, nil
	}
	return t.hasOurManifest(ctx, record, image)
}

// hasOurManifest reports whether a name is that of the manifest that was made for an image.
func (t *Target) hasOurManifest(ctx context.Context, record images.Image, image *migrate.Image) (bool, error) {
	info, err := t.content.Info(ctx, record.Target.Digest)
	if errdefs.IsNotFound(err) {
		return true, nil // nothing but the name is left
	}
	return err == nil && info.Labels[ImageLabel] == image.ID.String(), err
}

// removeName removes a name, unless it has become another image's.
func (t *Target) removeName(ctx context.Context, record images.Image) error {
	err := t.images.Delete(ctx, record.Name, images.DeleteTarget(&record.Target))
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("delete image %s: %w", record.Name, err)
}

// removeReference removes the name that containerd's plugin for Kubernetes has added, unless another name needs it: it would
// hold the image for good. The plugin does not make it again for a name that it knows already.
func (t *Target) removeReference(ctx context.Context, image *migrate.Image) error {
	reference, err := t.images.Get(ctx, image.ID.String())
	if errdefs.IsNotFound(err) || err == nil && reference.Labels[criLabel] != criManaged {
		return nil
	}
	if err != nil {
		return err
	}
	if ours, err := t.hasOurManifest(ctx, reference, image); err != nil || !ours {
		return err
	}
	same, err := t.images.List(ctx, fmt.Sprintf("target.digest==%q", reference.Target.Digest))
	if err != nil || slices.ContainsFunc(same, func(other images.Image) bool { return other.Name != reference.Name }) {
		return err
	}
	user, err := t.managedWith(ctx, image.ID)
	if err != nil {
		return err
	}
	if user == nil {
		return t.removeName(ctx, reference)
	}
	reference.Target = user.Target
	if _, err := t.images.Update(ctx, reference, "target"); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("give image %s to %s: %w", reference.Name, user.Name, err)
	}
	return nil
}

// managedWith returns a name that containerd's plugin for Kubernetes has seen and that no migration has given, of an image with that
// configuration. It is nil if there is none.
func (t *Target) managedWith(ctx context.Context, config digest.Digest) (*images.Image, error) {
	list, err := t.images.List(ctx, fmt.Sprintf("labels.%q==%q", criLabel, criManaged))
	if err != nil {
		return nil, err
	}
	for _, other := range list {
		if digest.Digest(other.Name).Validate() == nil || other.Labels[TagLabel] == other.Name {
			continue
		}
		if has, err := t.hasConfig(ctx, other.Target, config, maxNesting); err != nil {
			return nil, fmt.Errorf("image %s: %w", other.Name, err)
		} else if has {
			return &other, nil
		}
	}
	return nil, nil
}
