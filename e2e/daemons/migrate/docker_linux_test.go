package migrate

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDocker takes a data root of each of the old engine's drivers to Docker Engine of today and back, and to the plugin
// and back. In short runs the plugin, and the image with most layers, are for the btrfs driver alone.
func TestDocker(t *testing.T) {
	for _, driver := range []string{"btrfs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			registry := h.StartRegistry()
			all := driver == "btrfs" || testfs.Long()
			s := makeScenario(t, ctx, h, driver, driver == "btrfs", func(name string) bool {
				return all || name != "deep" && name != "cowtest/deep:1"
			})
			require.GreaterOrEqual(t, len(s.before.images), 20)
			require.GreaterOrEqual(t, len(s.before.containers), 9)

			after := []record{}
			if all {
				after = append(after, toPlugin(t, ctx, s, registry))
			}
			after = append(after, toDocker29(t, ctx, s, registry))

			// A container that had never run has the same files wherever it runs for the first time.
			s.engine.Daemon.Start()
			old := recordAll(t, ctx, s.engine, sameDigest, everything)
			s.engine.Stop()
			for i, r := range after {
				requireSame(t, old, r, all && i == 0)
			}
		})
	}
}
