package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/dirlist"
)

// Image is an image whose layers are in the driver.
type Image struct {
	Name     string
	Origin   string    // where it was imported from
	Imported time.Time // when
	Config   []byte    // as it was imported: its digest is the image's ID

	parsed *ocispec.Image
}

// ID is the digest of the config, as in Docker.
func (i *Image) ID() digest.Digest { return digest.FromBytes(i.Config) }

// Platform is the platform of the image.
func (i *Image) Platform() ocispec.Platform { return i.parsed.Platform }

// DiffIDs are the digests of the image's layer tars, base first.
func (i *Image) DiffIDs() []digest.Digest { return i.parsed.RootFS.DiffIDs }

// Layers are the names of the layers in the driver, base first.
func (i *Image) Layers() []string { return layerIDs(i.DiffIDs()) }

// Top is the name of the uppermost layer, "" for an image that has none.
func (i *Image) Top() string {
	if layers := i.Layers(); len(layers) > 0 {
		return layers[len(layers)-1]
	}
	return ""
}

// recordVersion is that of the format of record files.
const recordVersion = 1

// record is an image as it is kept in a file.
type record struct {
	Version  int       `json:"version"`
	Name     string    `json:"name"`
	Origin   string    `json:"origin,omitempty"`
	Imported time.Time `json:"imported"`
	Config   []byte    `json:"config"` // base64, since it must stay the same byte for byte
}

var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@+-]*$`)

// CheckName reports whether name can name an image: letters, digits and any of "._/:@+-", the first being
// a letter or digit, up to about 200 bytes. The error is errdefs.ErrInvalidArgument.
func CheckName(name string) error {
	switch {
	case name == "":
		return fault.New(errdefs.ErrInvalidArgument, "image name is empty")
	case !imageName.MatchString(name):
		return fault.New(errdefs.ErrInvalidArgument, "image name %q: use letters, digits and ._/:@+- with a letter or digit first", clip(name))
	case len(recordFile(name)) > 240: // of the 255 that a file name may have, some for a temporary suffix
		return fault.New(errdefs.ErrInvalidArgument, "image name %q is too long", clip(name))
	}
	return nil
}

// recordFile is the name of an image's record. No image name has a percent sign.
func recordFile(name string) string { return strings.ReplaceAll(name, "/", "%2F") + ".json" }

// Get returns the image of that name. Returns errdefs.ErrNotFound if there is no such image.
func (s *Store) Get(name string) (*Image, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	image, err := s.load(recordFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(errdefs.ErrNotFound, "image %s", name)
	}
	return image, err
}

// List returns all images, sorted by name. Records that cannot be read are left out and are part of the
// error, which does not make the others less useful.
func (s *Store) List() ([]*Image, error) {
	entries, err := dirlist.Read(s.path(recordsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var images []*Image
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue // a temporary file
		}
		image, err := s.load(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case err != nil:
			errs = append(errs, err)
		default:
			images = append(images, image)
		}
	}
	slices.SortFunc(images, func(a, b *Image) int { return strings.Compare(a.Name, b.Name) })
	return images, errors.Join(errs...)
}

func (s *Store) load(file string) (*Image, error) {
	path := s.path(recordsDir, file)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := readDocument(f, 2*maxConfigSize)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	image, err := decodeRecord(data)
	if err == nil && recordFile(image.Name) != file {
		err = fault.New(errdefs.ErrDataLoss, "it is of image %q", image.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("image record %s: %w", path, err)
	}
	return image, nil
}

func decodeRecord(data []byte) (*Image, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, fault.New(errdefs.ErrNotImplemented, "version %d, where %d is known", r.Version, recordVersion)
	}
	config, err := parseConfig(r.Config)
	if err != nil {
		return nil, err
	}
	return &Image{Name: r.Name, Origin: r.Origin, Imported: r.Imported, Config: r.Config, parsed: config}, nil
}

// save writes the image's record. It survives a power cut, and there is never a part of it.
func (s *Store) save(image *Image) error {
	data, err := json.MarshalIndent(record{
		Version: recordVersion, Name: image.Name, Origin: image.Origin, Imported: image.Imported, Config: image.Config,
	}, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteAs(s.path(recordsDir, recordFile(image.Name)), temporaryPrefix, append(data, '\n'), 0o600)
}
