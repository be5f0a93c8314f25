package tocontainerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobs are the blobs that migrations have made. To find one of them by its labels, containerd looks at all that it has. So
// they are listed once, and those that the Target makes are added.
type blobs struct {
	layers    map[digest.Digest]ocispec.Descriptor // by diff ID, in the Target's format
	manifests map[digest.Digest]ocispec.Descriptor // by the ID of the image
}

// note adds a blob. Of several for the same thing the first digest counts, so that all processes choose the same.
func note(all map[digest.Digest]ocispec.Descriptor, of digest.Digest, desc ocispec.Descriptor) {
	if there, ok := all[of]; !ok || desc.Digest < there.Digest {
		all[of] = desc
	}
}

// known lists the blobs, if that was not done yet.
func (t *Target) known(ctx context.Context) (*blobs, error) {
	if t.blobs != nil {
		return t.blobs, nil
	}
	found := &blobs{make(map[digest.Digest]ocispec.Descriptor), make(map[digest.Digest]ocispec.Descriptor)}
	err := t.content.Walk(ctx, func(info content.Info) error {
		desc := ocispec.Descriptor{MediaType: layerMediaType, Digest: info.Digest, Size: info.Size}
		if info.Labels[FormatLabel] == format.String() {
			note(found.layers, digest.Digest(info.Labels[uncompressedLabel]), desc)
		}
		if id := info.Labels[ImageLabel]; id != "" && id == info.Labels[configReference] {
			desc.MediaType = ocispec.MediaTypeImageManifest
			note(found.manifests, digest.Digest(id), desc)
		}
		return nil
	}, fmt.Sprintf("labels.%q==%q", FormatLabel, format), fmt.Sprintf("labels.%q", ImageLabel))
	if err != nil {
		return nil, err
	}
	t.blobs = found
	return found, nil
}

// findBlob finds the blob of a thing, which is there still. It has no digest if there is none.
func (t *Target) findBlob(ctx context.Context, in func(*blobs) map[digest.Digest]ocispec.Descriptor, of digest.Digest) (ocispec.Descriptor, error) {
	for {
		all, err := t.known(ctx)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		found, ok := in(all)[of]
		if !ok {
			return ocispec.Descriptor{}, nil
		}
		_, err = t.content.Info(ctx, found.Digest)
		if !errdefs.IsNotFound(err) {
			return found, err
		}
		t.blobs = nil // containerd has collected it since
	}
}

func layersOf(b *blobs) map[digest.Digest]ocispec.Descriptor { return b.layers }

func manifestsOf(b *blobs) map[digest.Digest]ocispec.Descriptor { return b.manifests }
