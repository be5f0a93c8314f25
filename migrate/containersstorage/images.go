package containersstorage

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

// addImage lists an image, or a Problem.
func (l *lister) addImage(record *imageRecord) {
	image, err := l.image(record)
	if err != nil {
		l.problem("image", record.ID, firstOf(record.Names), err)
		return
	}
	for _, name := range record.Names {
		if err := addName(image, name, record.Digest); err != nil {
			l.problem("image", record.ID, name, fault.Wrap("the image comes without the name", name, err))
		}
	}
	slices.Sort(image.Names)
	slices.Sort(image.Digests)
	image.Names, image.Digests = slices.Compact(image.Names), slices.Compact(image.Digests)
	l.images[record.ID] = true
	l.inv.Images = append(l.inv.Images, *image)
}

func firstOf(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// image checks that the configuration and the layers of an image belong together.
func (l *lister) image(record *imageRecord) (*migrate.Image, error) {
	id := digest.NewDigestFromEncoded(digest.SHA256, record.ID)
	if err := id.Validate(); err != nil {
		return nil, fault.New(errdefs.ErrNotImplemented, "the ID is not the digest of a configuration, as of an image of schema 1")
	}
	config, err := l.source.readConfig(record, id)
	if err != nil {
		return nil, fault.Wrap("read the configuration", "", err)
	}
	var parsed ocispec.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "the configuration: %w", err)
	}
	image := &migrate.Image{ID: id, Config: config}
	want := parsed.RootFS.DiffIDs
	if record.TopLayer == "" {
		if len(want) > 0 {
			return nil, fault.New(errdefs.ErrDataLoss, "the image has no layers, and its configuration %d", len(want))
		}
		return image, nil
	}
	top, err := l.whole(record.TopLayer)
	if err != nil {
		return nil, err
	}
	if top.wrong != nil {
		return nil, top.wrong
	}
	if len(want) != top.depth+1 {
		return nil, fault.New(errdefs.ErrDataLoss, "the image has %d layers, and its configuration %d", top.depth+1, len(want))
	}
	for at := top; at != nil; at = at.parent {
		if at.DiffID != want[at.depth] {
			return nil, fault.New(errdefs.ErrDataLoss, "layer %q has the digest %s, and in the configuration %.100s", at.ID, at.DiffID, want[at.depth])
		}
		image.Layers = append(image.Layers, at.ID)
	}
	slices.Reverse(image.Layers)
	l.use(top, migrate.ImageLayer)
	return image, nil
}

// readConfig reads the configuration of an image, which is the data whose digest is the image's ID.
func (s *Source) readConfig(record *imageRecord, id digest.Digest) ([]byte, error) {
	names := []string{id.String()} // the usual name
	for _, name := range slices.Sorted(maps.Keys(record.BigDataDigests)) {
		if record.BigDataDigests[name] == id && name != id.String() {
			names = append(names, name)
		}
	}
	var errs []error
	for _, name := range names {
		config, err := s.root.ReadFile(s.driver+"-images/"+record.ID+"/"+dataFile(name), maxConfig)
		switch {
		case err == nil && digest.FromBytes(config) == id:
			return config, nil
		case err == nil:
			err = fault.New(errdefs.ErrDataLoss, "the data %q has not the digest of the image's ID", name)
		case errors.Is(err, fs.ErrNotExist):
			err = fault.As(errdefs.ErrNotFound, err)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// addName adds a name of an image, and its digest in the registry that the name is of.
func addName(image *migrate.Image, name string, manifest digest.Digest) error {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return fault.As(errdefs.ErrInvalidArgument, err)
	}
	bare := reference.TrimNamed(ref)
	if digested, ok := ref.(reference.Digested); ok {
		manifest = digested.Digest()
	} else {
		image.Names = append(image.Names, reference.TagNameOnly(ref).String())
		if reference.Domain(ref) == "localhost" {
			return nil // no registry has it
		}
	}
	if manifest == "" {
		return nil
	}
	if err := manifest.Validate(); err != nil {
		return fault.As(errdefs.ErrInvalidArgument, err)
	}
	canonical, err := reference.WithDigest(bare, manifest)
	if err != nil {
		return fault.As(errdefs.ErrInvalidArgument, err)
	}
	image.Digests = append(image.Digests, canonical.String())
	return nil
}
