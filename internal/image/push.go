package image

import (
	"bytes"
	"context"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// push writes an image to a registry. Blobs that are there already are not sent.
func push(ctx context.Context, ref Reference, image *writtenImage, opts RegistryOptions) error {
	at, err := registryName(ref, opts)
	if err != nil {
		return err
	}
	img, err := partial.CompressedToImage(pushedImage{image})
	if err != nil {
		return err
	}
	return registryError(remote.Write(at, img, remoteOptions(ctx, opts)...))
}

// pushedImage shows an image to go-containerregistry.
type pushedImage struct{ image *writtenImage }

var _ partial.CompressedImageCore = pushedImage{}

// RawConfigFile implements partial.CompressedImageCore.
func (p pushedImage) RawConfigFile() ([]byte, error) { return p.image.config, nil }

// RawManifest implements partial.CompressedImageCore.
func (p pushedImage) RawManifest() ([]byte, error) { return p.image.manifest, nil }

// MediaType implements partial.CompressedImageCore.
func (p pushedImage) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// LayerByDigest implements partial.CompressedImageCore.
func (p pushedImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	want := digest.Digest(h.String())
	if want == digest.FromBytes(p.image.config) {
		open := func() io.Reader { return bytes.NewReader(p.image.config) }
		return pushedBlob{open: open, descriptor: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageConfig, Digest: want, Size: int64(len(p.image.config)),
		}}, nil
	}
	for _, b := range p.image.layers {
		if b.digest == want && b.file == nil {
			open := func() io.Reader {
				return failingReader{fmt.Errorf("the registry has lost layer %s, which was there", b.digest)}
			}
			return pushedBlob{open: open, descriptor: b.descriptor()}, nil
		}
		if b.digest == want {
			return pushedBlob{open: b.open, descriptor: b.descriptor()}, nil
		}
	}
	return nil, fmt.Errorf("no layer %s", h)
}

// pushedBlob is a blob that can be read several times, as a failed upload is tried again.
type pushedBlob struct {
	open       func() io.Reader
	descriptor ocispec.Descriptor
}

// Digest implements partial.CompressedLayer.
func (b pushedBlob) Digest() (v1.Hash, error) { return v1.NewHash(b.descriptor.Digest.String()) }

// Size implements partial.CompressedLayer.
func (b pushedBlob) Size() (int64, error) { return b.descriptor.Size, nil }

// MediaType implements partial.CompressedLayer.
func (b pushedBlob) MediaType() (types.MediaType, error) {
	return types.MediaType(b.descriptor.MediaType), nil
}

// Compressed implements partial.CompressedLayer.
func (b pushedBlob) Compressed() (io.ReadCloser, error) { return io.NopCloser(b.open()), nil }
