package snapshotter

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// Differ makes layers of the snapshots of a Snapshotter, and applies layers to them, without mounting anything: it
// finds the volumes that mounts are of. It implements containerd's diff.Comparer and diff.Applier.
//
// It is safe for concurrent use. Its methods return errdefs.ErrNotImplemented if the mounts are not of the
// Snapshotter, or if the media type is unknown. containerd's diff service then asks the next differ.
type Differ struct {
	snapshotter *Snapshotter
	store       content.Store
}

var (
	_ diff.Comparer = (*Differ)(nil)
	_ diff.Applier  = (*Differ)(nil)
)

// DifferOption changes the Differ that NewDiffer makes.
type DifferOption func(*Differ)

// NewDiffer makes a Differ that keeps blobs in store.
func NewDiffer(s *Snapshotter, store content.Store, opts ...DifferOption) *Differ {
	d := &Differ{snapshotter: s, store: store}
	for _, opt := range opts {
		opt(d)
	}
	return d
}

// CompareStats counts the comparisons since the Snapshotter was made, also those that measure a snapshot. It counts
// native comparisons, and walks of both trees by reason. A snapshot without a parent is neither.
func (d *Differ) CompareStats() cowcommon.CompareStats { return d.snapshotter.comparer.Stats() }

// layerFormats says how the layers of each media type are compressed that containerd knows. A layer with the
// Docker media type of an uncompressed one may be compressed all the same.
var layerFormats = map[string]layertar.Format{
	ocispec.MediaTypeImageLayer:     layertar.Plain,
	ocispec.MediaTypeImageLayerGzip: layertar.Gzip,
	ocispec.MediaTypeImageLayerZstd: layertar.Zstd,

	ocispec.MediaTypeImageLayerNonDistributable:     layertar.Plain, //nolint:staticcheck // deprecated, but images have them
	ocispec.MediaTypeImageLayerNonDistributableGzip: layertar.Gzip,  //nolint:staticcheck // deprecated, but images have them
	ocispec.MediaTypeImageLayerNonDistributableZstd: layertar.Zstd,  //nolint:staticcheck // deprecated, but images have them

	images.MediaTypeDockerSchema2Layer:            layertar.Gzip,
	images.MediaTypeDockerSchema2LayerForeign:     layertar.Gzip,
	images.MediaTypeDockerSchema2LayerGzip:        layertar.Gzip,
	images.MediaTypeDockerSchema2LayerForeignGzip: layertar.Gzip,
	images.MediaTypeDockerSchema2LayerZstd:        layertar.Zstd,
}

func unknownMediaType(mediaType string) error {
	return fault.New(errdefs.ErrNotImplemented, "media type %q", mediaType)
}

// toStore passes the namespace and lease of a gRPC request on to requests to the content store: blobs that are
// written there must belong to the client.
func toStore(ctx context.Context) context.Context {
	if namespace, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, namespace)
	}
	if lease, ok := leases.FromContext(ctx); ok {
		ctx = leases.WithLease(ctx, lease)
	}
	return ctx
}

// typed gives errors of the kernel and of layers the type that clients understand.
func typed(err error) error {
	switch {
	case fault.IsFull(err):
		return fault.As(errdefs.ErrResourceExhausted, err)
	case errors.Is(err, layertar.ErrMalformed), errors.Is(err, layertar.ErrReservedName), errors.Is(err, layertar.ErrCowshedName),
		errors.Is(err, io.ErrUnexpectedEOF):
		return fault.As(errdefs.ErrInvalidArgument, err)
	}
	return err
}
