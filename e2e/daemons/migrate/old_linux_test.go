package migrate

import (
	"testing"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestOldEngine: what the old engine has is the same after a restart, without any migration. The other tests rely on it.
func TestOldEngine(t *testing.T) {
	for _, driver := range []string{"btrfs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			s := makeScenario(t, ctx, h, driver, driver == "btrfs")
			s.engine.Daemon.Start()
			requireSame(t, s.before, recordOf(t, ctx, s.engine, sameDigest), true)
			s.engine.Stop()
		})
	}
}
