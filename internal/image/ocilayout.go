package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Docker's media types, which OCI layouts may hold too (distribution, manifest-v2-2.md).
const (
	dockerIndexType    = string(types.DockerManifestList)
	dockerManifestType = string(types.DockerManifestSchema2)
	dockerConfigType   = string(types.DockerConfigJSON)
)

// annotationImageName is how containerd and Docker record a full image name in an index.
const annotationImageName = "io.containerd.image.name"

// fromLayout finds the image in an OCI image layout.
func (s *Source) fromLayout(_ context.Context, f files, ref Reference, opts OpenOptions) error {
	var layout ocispec.ImageLayout
	if err := readJSON(f, ocispec.ImageLayoutFile, &layout); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("not an OCI layout: it has no file %s: %w", ocispec.ImageLayoutFile, ErrMalformed)
		}
		return err
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return fault.New(errdefs.ErrNotImplemented, "OCI layout of version %q, where %s is known", clip(layout.Version), ocispec.ImageLayoutVersion)
	}
	var index ocispec.Index
	if err := readJSON(f, ocispec.ImageIndexFile, &index); err != nil {
		return err
	}
	d, err := chooseImage(index.Manifests, ref, opts.Platform)
	if err != nil {
		return err
	}
	s.Name = layoutImageName(d, ref)
	return s.fromDescriptor(f, d, opts, 0)
}

// chooseImage returns the entry of an index.json that is meant, or the only one.
func chooseImage(entries []ocispec.Descriptor, ref Reference, platform ocispec.Platform) (ocispec.Descriptor, error) {
	if len(entries) == 0 {
		return ocispec.Descriptor{}, fault.New(errdefs.ErrNotFound, "the layout has no images")
	}
	var all []candidate
	for _, d := range entries {
		c := candidate{digest: d.Digest}
		if name := fullName(d); name != "" {
			c.names = append(c.names, familiarName(name))
		}
		if tag := d.Annotations[ocispec.AnnotationRefName]; tag != "" {
			c.names = append(c.names, tag)
		}
		all = append(all, c)
	}
	places := choose(all, ref.Image)
	found := distinct(entries, places)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return ocispec.Descriptor{}, errNoImage(ref, all)
	case samePlatformSet(found):
		return choosePlatform(found, platform)
	}
	return ocispec.Descriptor{}, errSeveral(ref, all, places)
}

// distinct returns the entries in those places, but each image once: under the first of its names, if it has one.
func distinct(entries []ocispec.Descriptor, places []int) (found []ocispec.Descriptor) {
	at := make(map[digest.Digest]int)
	for _, place := range places {
		d := entries[place]
		i, there := at[d.Digest]
		switch {
		case !there:
			at[d.Digest] = len(found)
			found = append(found, d)
		case indexKey(found[i]) == "":
			found[i] = d
		}
	}
	return found
}

// fullName is the name of an entry with its repository, "" if it has only a tag or nothing. A tool that knows the tags of
// layouts alone gives an entry another tag and leaves containerd's name as it was: the tag counts.
func fullName(d ocispec.Descriptor) string {
	name, tag := d.Annotations[annotationImageName], d.Annotations[ocispec.AnnotationRefName]
	switch {
	case name == "" && strings.ContainsAny(tag, ":/"):
		return tag
	case name == "":
		return ""
	}
	return withTag(name, tag)
}

// samePlatformSet reports whether the entries are one image for several platforms: all have the same name
// and each a platform of its own.
func samePlatformSet(entries []ocispec.Descriptor) bool {
	seen := make(map[string]bool)
	for _, d := range entries {
		if d.Platform == nil || indexKey(d) != indexKey(entries[0]) {
			return false
		}
		p := FormatPlatform(*d.Platform)
		if seen[p] {
			return false
		}
		seen[p] = true
	}
	return true
}

// layoutImageName is a name for an image of a layout, where most have only a tag.
func layoutImageName(d ocispec.Descriptor, ref Reference) string {
	if name := fullName(d); name != "" {
		return familiarName(name)
	}
	tag := d.Annotations[ocispec.AnnotationRefName]
	if ref.Path == Stdio {
		return tag
	}
	base := fileBase(ref.Path)
	if tag == "" {
		return base
	}
	return base + ":" + tag
}

// fileBase is the last part of a path without the suffixes of packing.
func fileBase(p string) string {
	base := filepath.Base(filepath.Clean(p))
	for _, suffix := range []string{".gz", ".zst", ".bz2", ".xz", ".tgz", ".txz", ".tar"} {
		base = strings.TrimSuffix(base, suffix)
	}
	return base
}

// fromDescriptor takes the image that d describes, which may be an index of platforms.
func (s *Source) fromDescriptor(f files, d ocispec.Descriptor, opts OpenOptions, depth int) error {
	switch d.MediaType {
	case ocispec.MediaTypeImageIndex, dockerIndexType:
		if depth == maxIndexDepth {
			return fmt.Errorf("index in index, %d deep: %w", depth, ErrMalformed)
		}
		var index ocispec.Index
		if err := readBlobJSON(f, d, "index", &index); err != nil {
			return err
		}
		chosen, err := choosePlatform(index.Manifests, opts.Platform)
		if err != nil {
			return err
		}
		return s.fromDescriptor(f, chosen, opts, depth+1)
	case ocispec.MediaTypeImageManifest, dockerManifestType:
		return s.fromManifest(f, d, opts)
	}
	return fault.New(errdefs.ErrNotImplemented, "media type %q is not the media type of an image", clip(d.MediaType))
}

func (s *Source) fromManifest(f files, d ocispec.Descriptor, opts OpenOptions) error {
	s.platform = d.Platform
	var manifest ocispec.Manifest
	if err := readBlobJSON(f, d, "manifest", &manifest); err != nil {
		return err
	}
	for i, layer := range manifest.Layers {
		if err := checkLayer(layer); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		s.layers = append(s.layers, blobLayer(f, layer))
	}
	config, err := readBlob(f, manifest.Config, "config", maxConfigSize)
	if err != nil {
		return err
	}
	return s.setConfig(config, opts)
}

// checkLayer refuses layers that cannot be read.
func checkLayer(d ocispec.Descriptor) error {
	if strings.HasSuffix(d.MediaType, "+encrypted") {
		return fault.New(errdefs.ErrNotImplemented, "the layer is encrypted")
	}
	if d.Size < 0 {
		return fmt.Errorf("size %d: %w", d.Size, ErrMalformed)
	}
	return checkDigest(d.Digest)
}

func blobLayer(f files, d ocispec.Descriptor) sourceLayer {
	return sourceLayer{digest: d.Digest, size: d.Size, mediaType: d.MediaType, open: func(context.Context) (io.ReadCloser, error) {
		r, _, err := f.open(blobPath(d.Digest))
		return r, asMalformed(err)
	}}
}

// blobPath is where an OCI layout keeps the blob with that digest.
func blobPath(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// readBlob reads a document and checks its size and digest.
func readBlob(f files, d ocispec.Descriptor, what string, limit int64) ([]byte, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if d.Size > limit {
		return nil, fmt.Errorf("%s of %d bytes, more than %d: %w", what, d.Size, limit, errTooLarge)
	}
	r, _, err := f.open(blobPath(d.Digest))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, asMalformed(err))
	}
	data, err := readDocument(newVerifier(r, what, d.Digest, d.Size), limit)
	return data, errors.Join(err, r.Close())
}

func readBlobJSON(f files, d ocispec.Descriptor, what string, into any) error {
	data, err := readBlob(f, d, what, maxManifestSize)
	if err != nil {
		return err
	}
	return decodeJSON(data, what, into)
}

func readJSON(f files, name string, into any) error {
	data, err := readFile(f, name, maxManifestSize)
	if err != nil {
		return err
	}
	return decodeJSON(data, name, into)
}

func decodeJSON(data []byte, what string, into any) error {
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(into); err != nil {
		return fmt.Errorf("%s: %w: %w", what, err, ErrMalformed)
	}
	return nil
}
