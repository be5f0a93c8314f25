package migrate

import (
	"context"
	"slices"
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

// makeScenario makes the images and containers whose first names are wanted. limits says that the driver limits
// containers.
func makeScenario(t *testing.T, ctx context.Context, h *harness.Host, driver string, limits bool, wanted func(name string) bool) scenario {
	t.Helper()
	e := h.StartDebianDocker(harness.EngineOptions{Driver: driver})
	images := slices.DeleteFunc(loadedImages(t, h.Programs), func(img image) bool { return !wanted(img.name()) })
	loadImages(t, ctx, e, h.Dir, images)
	if wanted("cowtest/imported:1") {
		importImage(t, ctx, e, "cowtest/imported:1", importedRoot(t, h.Programs), "ENV IMPORTED=yes", `CMD ["/bin/sh"]`)
	}
	if wanted("cowtest/committed:1") {
		result, err := e.RunContainer(ctx, "to-commit", "cowtest/sample:1", harness.ChangeScript, nil)
		require.NoError(t, err)
		require.Equal(t, harness.Result{Output: "changed\n"}, result)
		require.NoError(t, e.Commit(ctx, "to-commit", "cowtest/committed:1"))
		require.NoError(t, e.Remove(ctx, "to-commit"))
	}
	if wanted("cowtest/built:1") {
		require.NoError(t, buildImage(ctx, e))
	}
	var untagged string
	for _, img := range images {
		if len(img.tags) == 0 {
			config, err := img.ConfigName()
			require.NoError(t, err)
			untagged = config.String()
		}
	}
	containers := slices.DeleteFunc(recipes(untagged, limits), func(r recipe) bool { return !wanted(r.name) })
	makeContainers(t, ctx, e, containers)
	// The engine stops the containers.
	e.Stop()

	e.Daemon.Start()
	s := scenario{host: h, driver: driver, limits: limits, engine: e, before: recordOf(t, ctx, e, sameDigest)}
	e.Stop()
	require.GreaterOrEqual(t, len(s.before.images), len(images))
	require.Len(t, s.before.containers, len(containers))
	return s
}

// everything is the choice of recordAll that starts all containers.
func everything(string) bool { return true }

// sameDigest is configOf for engines whose IDs of images are the digests of the configs.
func sameDigest(id string) digest.Digest { return digest.Digest(id) }
