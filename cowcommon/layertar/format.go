package layertar

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format says how a layer tar is compressed.
type Format uint8

const (
	// Plain is a tar as it is.
	Plain Format = iota
	// Gzip is RFC 1952, in one or several members.
	Gzip
	// Zstd is RFC 8878, in one or several frames.
	Zstd
	// Bzip2 is the format of the program bzip2. It can be read only.
	Bzip2
	// XZ is the .xz format of xz(1). It can be read only.
	XZ
)

// String returns "plain", "gzip", "zstd", "bzip2" or "xz".
func (f Format) String() string {
	switch f {
	case Plain:
		return "plain"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	case Bzip2:
		return "bzip2"
	case XZ:
		return "xz"
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// ParseFormat is the inverse of [Format.String]. It also knows "" and "none" for Plain and "gz" and "zst".
// Anything else is errdefs.ErrInvalidArgument.
func ParseFormat(s string) (Format, error) {
	switch s {
	case "", "plain", "none":
		return Plain, nil
	case "gzip", "gz":
		return Gzip, nil
	case "zstd", "zst":
		return Zstd, nil
	}
	return Plain, fmt.Errorf("layertar: compression %q: want plain, gzip or zstd: %w", s, errdefs.ErrInvalidArgument)
}

// MediaType is the media type of a layer in this format in an OCI image (image-spec, media-types.md), which has none for
// Bzip2 and XZ: of those it is that of Plain.
func (f Format) MediaType() string {
	switch f {
	case Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case Zstd:
		return ocispec.MediaTypeImageLayerZstd
	default:
		return ocispec.MediaTypeImageLayer
	}
}

// The media types of Docker's image manifest, version 2, schema 2. The foreign one is the same format,
// fetched from elsewhere; that of a zstd layer is not in the schema, but registries hold it.
const (
	dockerLayer      = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign    = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	nondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// FormatOfMediaType says in which format a layer of an OCI or Docker media type is. ok is false for the
// media types of other things, encrypted layers included.
func FormatOfMediaType(mediaType string) (f Format, ok bool) {
	base, suffix := mediaType, ""
	if i := strings.IndexAny(mediaType, "+"); i >= 0 {
		base, suffix = mediaType[:i], mediaType[i+1:]
	} else if rest, found := strings.CutSuffix(mediaType, ".gzip"); found {
		base, suffix = rest, "gzip"
	} else if rest, found := strings.CutSuffix(mediaType, ".zstd"); found {
		base, suffix = rest, "zstd"
	}
	switch base {
	case ocispec.MediaTypeImageLayer, nondistributable, dockerLayer, dockerForeign:
	default:
		return Plain, false
	}
	switch suffix {
	case "":
		return Plain, true
	case "gzip":
		return Gzip, true
	case "zstd":
		return Zstd, true
	}
	return Plain, false
}
