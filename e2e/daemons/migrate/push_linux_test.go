package migrate

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
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
			ref, err := name.ParseReference(reference, name.Insecure)
			if err != nil {
				return err
			}
			pushed, err := remote.Image(ref, remote.WithContext(ctx), remote.WithTransport(transport))
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
