package migrate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// requirePushes pushes all images with names to a registry, and looks there for their configs and layers.
func requirePushes(t *testing.T, ctx context.Context, e *harness.Engine, registry string, r record) {
	t.Helper()
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	var g errgroup.Group
	g.SetLimit(2)
	for config, img := range r.images {
		if len(img.Names) == 0 {
			continue
		}
		reference := fmt.Sprintf("%s/pushed/%s:1", registry, config.Encoded()[:12])
		g.Go(func() error {
			if _, err := e.ImageTag(ctx, client.ImageTagOptions{Source: img.ID, Target: reference}); err != nil {
				return err
			}
			if err := e.Push(ctx, reference); err != nil {
				return err
			}
			if _, err := e.ImageRemove(ctx, reference, client.ImageRemoveOptions{}); err != nil {
				return err
			}
			pushed, err := imageIn(ctx, transport, reference)
			if err != nil {
				return err
			}
			file, err := pushed.RawConfigFile()
			if err != nil {
				return err
			}
			assert.Equal(t, config, digest.FromBytes(file), "pushed config of %v", img.Names)
			layers, err := pushed.Layers()
			if err != nil {
				return err
			}
			assert.Len(t, layers, len(img.DiffIDs), "pushed layers of %v", img.Names)
			return nil
		})
	}
	require.NoError(t, g.Wait())
}

// imageIn is an image in a registry.
func imageIn(ctx context.Context, transport http.RoundTripper, reference string) (v1.Image, error) {
	ref, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref, remote.WithContext(ctx), remote.WithTransport(transport))
}

// requirePushed checks that an image in a registry has the config, and layers that have these digests before compression. known
// has those of blobs that were read before.
func requirePushed(t *testing.T, ctx context.Context, transport http.RoundTripper, reference string, config digest.Digest, diffIDs []digest.Digest, known map[v1.Hash]digest.Digest) {
	t.Helper()
	pushed, err := imageIn(ctx, transport, reference)
	require.NoError(t, err)
	file, err := pushed.RawConfigFile()
	require.NoError(t, err)
	assert.Equal(t, config, digest.FromBytes(file), "pushed config of %s", reference)
	layers, err := pushed.Layers()
	require.NoError(t, err)
	got := []digest.Digest{}
	for _, layer := range layers {
		hash, err := layer.Digest()
		require.NoError(t, err)
		if known[hash] == "" {
			blob, err := layer.Compressed()
			require.NoError(t, err)
			known[hash], err = digest.FromReader(decompress(t, blob))
			require.NoError(t, errors.Join(err, blob.Close()))
		}
		got = append(got, known[hash])
	}
	assert.Equal(t, diffIDs, got, "pushed layers of %s", reference)
}
