package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// Origin is the image that a container of containerd was made from.
type Origin struct {
	Image  *Image
	Layers []OriginLayer // base first
	Base   string        // volume from which the container's changes count
	// Close ends the connection that Open of the layers uses.
	Close func() error
}

// OriginLayer is a layer of an Origin.
type OriginLayer struct {
	DiffID digest.Digest
	Blob   ocispec.Descriptor
	// Open reads the blob. nil: containerd has discarded the blob, and the layer is the difference of two volumes.
	Open          func(ctx context.Context) (io.ReadCloser, error)
	Volume, Below string // Below: "" for none
}

// FindOrigin finds the image of a container, of which target is the digest of a manifest or an index. Of the images in an index, it is
// that whose snapshot is one of chainIDs. The context names the namespace of the content store, which has to stay open.
//
// Returns errdefs.ErrFailedPrecondition if there is none.
func FindOrigin(ctx context.Context, store content.Store, name string, target digest.Digest, chainIDs []string) (*Origin, error) {
	f := &originFinder{store: store, name: name, chainIDs: chainIDs, left: maxOriginBlobs}
	o, err := f.find(ctx, target, maxIndexDepth)
	if err == nil && o == nil {
		err = fault.Said(errdefs.ErrFailedPrecondition, "the root of the container is not on image %s as containerd has it now", name)
	}
	return o, err
}

// maxOriginBlobs is how many documents of an image are read at most.
const maxOriginBlobs = 1000

type originFinder struct {
	store    content.Store
	name     string
	chainIDs []string
	left     int // documents that may be read
}

// find looks into a manifest or an index. The Origin is nil if it is not there.
func (f *originFinder) find(ctx context.Context, d digest.Digest, depth int) (*Origin, error) {
	var document struct {
		Config    *ocispec.Descriptor
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	data, err := f.read(ctx, d, maxManifestSize)
	if errdefs.IsNotFound(err) {
		return nil, nil // an index lists images that were not pulled
	}
	if err == nil {
		err = decodeJSON(data, "manifest "+d.String(), &document)
	}
	if err != nil {
		return nil, err
	}
	for _, entry := range document.Manifests {
		if depth == 0 {
			break
		}
		if o, err := f.find(ctx, entry.Digest, depth-1); o != nil || err != nil {
			return o, err
		}
	}
	if document.Config == nil {
		return nil, nil
	}
	return f.origin(ctx, document.Config.Digest, document.Layers)
}

// origin is the Origin of a manifest, nil if it is another image.
func (f *originFinder) origin(ctx context.Context, config digest.Digest, layers []ocispec.Descriptor) (*Origin, error) {
	raw, err := f.read(ctx, config, maxConfigSize)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	parsed, err := parseConfig(raw)
	if err != nil { // such as an attestation
		return nil, nil //nolint:nilerr // it is not the image of a container
	}
	diffIDs := parsed.RootFS.DiffIDs
	if len(diffIDs) != len(layers) || !slices.Contains(f.chainIDs, identity.ChainID(slices.Clone(diffIDs)).String()) {
		return nil, nil
	}
	o := &Origin{Image: &Image{Name: f.name, Config: raw, parsed: parsed}}
	for i, blob := range layers {
		layer := OriginLayer{DiffID: diffIDs[i], Blob: blob}
		_, err := f.store.Info(ctx, blob.Digest)
		if err == nil {
			layer.Open = f.open(ctx, blob)
		} else if !errdefs.IsNotFound(err) {
			return nil, err
		}
		o.Layers = append(o.Layers, layer)
	}
	return o, nil
}

// read reads a document of at most limit bytes.
func (f *originFinder) read(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	if f.left--; f.left < 0 {
		return nil, fault.New(errdefs.ErrResourceExhausted, "image %s has more than %d documents", f.name, maxOriginBlobs)
	}
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	info, err := f.store.Info(ctx, d)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, fmt.Errorf("blob %s of %d bytes, more than %d: %w", d, info.Size, limit, errTooLarge)
	}
	data, err := content.ReadBlob(ctx, f.store, ocispec.Descriptor{Digest: d, Size: info.Size})
	if err == nil && digest.FromBytes(data) != d {
		err = mismatch("blob", digest.FromBytes(data), d)
	}
	return data, err
}

// blobPiece is how much of a blob is read or written at once: each time may be a request to containerd.
const blobPiece = 1 << 20

// open returns a function that reads a blob in the namespace of ctx.
func (f *originFinder) open(ctx context.Context, blob ocispec.Descriptor) func(context.Context) (io.ReadCloser, error) {
	namespace, _ := namespaces.Namespace(ctx)
	return func(ctx context.Context) (io.ReadCloser, error) {
		data, err := f.store.ReaderAt(namespaces.WithNamespace(ctx, namespace), blob)
		if err != nil {
			return nil, err
		}
		return readCloser{bufio.NewReaderSize(io.NewSectionReader(data, 0, data.Size()), blobPiece), data}, nil
	}
}

type readCloser struct {
	io.Reader
	io.Closer
}

// compressionOf is the compression that the media type of a layer names. ok is false if it names none that the layers of an OCI
// image have.
func compressionOf(mediaType string) (format layertar.Format, ok bool) {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return layertar.Gzip, true
	case strings.HasSuffix(mediaType, "zstd"):
		return layertar.Zstd, true
	}
	return layertar.Plain, false
}

// originPlan is the plan of a container: its image, and its changes as one layer more.
func originPlan(p Promotion) *plan {
	o := p.Origin
	made := &plan{base: o.Image} // without a name: that of a container is none of an image
	for _, l := range o.Layers {
		layer := planLayer{top: l.Volume, base: l.Below, diffID: l.DiffID}
		if l.Open != nil {
			layer.top = l.DiffID.Encoded()
			layer.stored = &sourceLayer{digest: l.Blob.Digest, size: l.Blob.Size, mediaType: l.Blob.MediaType, open: l.Open}
		}
		made.layers = append(made.layers, layer)
	}
	made.layers = append(made.layers, p.layer(o.Base))
	return made
}
