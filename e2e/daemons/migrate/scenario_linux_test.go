package migrate

import (
	"context"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// scenario is a data root that Debian's engine has made with one of its own drivers. The engine is stopped.
type scenario struct {
	host   *harness.Host
	driver string
	limits bool
	engine *harness.Engine
	before record
}

// makeScenario makes images and containers. limits says that the driver limits containers.
func makeScenario(t *testing.T, ctx context.Context, h *harness.Host, driver string, limits bool) scenario {
	t.Helper()
	e := h.StartDebianDocker(harness.EngineOptions{Driver: driver})
	images := loadedImages(t, h.Programs)
	loadImages(t, ctx, e, h.Dir, images)
	importImage(t, ctx, e, "cowtest/imported:1", importedRoot(t, h.Programs), "ENV IMPORTED=yes", `CMD ["/bin/sh"]`)
	result, err := e.RunContainer(ctx, "to-commit", "cowtest/sample:1", harness.ChangeScript, nil)
	require.NoError(t, err)
	require.Equal(t, harness.Result{Output: "changed\n"}, result)
	require.NoError(t, e.Commit(ctx, "to-commit", "cowtest/committed:1"))
	require.NoError(t, e.Remove(ctx, "to-commit"))
	require.NoError(t, buildImage(ctx, e))

	var untagged string
	for _, img := range images {
		if len(img.tags) == 0 {
			config, err := img.ConfigName()
			require.NoError(t, err)
			untagged = config.String()
		}
	}
	makeContainers(t, ctx, e, recipes(untagged, limits))
	// The engine stops the containers.
	e.Stop()

	e.Daemon.Start()
	s := scenario{host: h, driver: driver, limits: limits, engine: e, before: recordOf(t, ctx, e, sameDigest)}
	require.GreaterOrEqual(t, len(s.before.images), 20)
	require.Len(t, s.before.containers, 10)
	e.Stop()
	return s
}

// sameDigest is configOf for engines whose IDs of images are the digests of the configs.
func sameDigest(id string) digest.Digest { return digest.Digest(id) }
