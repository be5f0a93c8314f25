package image

import (
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// fromRootFS makes the tar of a root filesystem an image of one layer.
func (s *Source) fromRootFS(in *input, ref Reference, opts OpenOptions) error {
	platform := opts.Platform
	if platform.Architecture == "" {
		platform = HostPlatform()
	}
	created := time.Now().UTC().Truncate(time.Second)
	if opts.Created != nil {
		created = opts.Created.UTC()
	}
	if ref.Path != Stdio {
		s.Name = fileBase(ref.Path)
	}

	layer := sourceLayer{size: in.size, unverified: true, open: in.opener()}
	if in.plain != nil && in.format != layertar.Plain {
		layer.size = -1
	}
	s.layers = []sourceLayer{layer}
	s.describe = func(diffIDs []digest.Digest) ([]byte, error) {
		history := []ocispec.History{{Created: &created, CreatedBy: "cowshed import " + string(RootFS)}}
		return newConfig(platform, created, history, diffIDs)
	}
	return nil
}
