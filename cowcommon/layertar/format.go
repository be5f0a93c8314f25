package layertar

import (
	"fmt"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
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
	return Plain, fault.New(errdefs.ErrInvalidArgument, "layertar: compression %q: want plain, gzip or zstd", s)
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
