package migrate

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDocker takes a data root of each of the old engine's drivers to the plugin and back, and then to Docker Engine of
// today and back.
func TestDocker(t *testing.T) {
	for _, driver := range []string{"btrfs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			registry := h.StartRegistry()
			s := makeScenario(t, ctx, h, driver, driver == "btrfs")
			require.GreaterOrEqual(t, len(s.before.images), 20)
			require.Len(t, s.before.containers, 10)
			// Without any migration, all is the same after a restart.
			requireOld(t, ctx, s)

			onPlugin := toPlugin(t, ctx, s, registry)
			on29 := toDocker29(t, ctx, s, registry)

			// A container that had never run has the same files wherever it runs for the first time.
			s.engine.Daemon.Start()
			old := recordAll(t, ctx, s.engine, sameDigest, everything)
			s.engine.Stop()
			requireSame(t, old, onPlugin, true)
			requireSame(t, old, on29, false)
		})
	}
}
