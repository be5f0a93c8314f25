package migrate

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestMigrateZFS is TestDocker with the old engine's zfs driver, and with fewer images: the machine with the pool may be an
// emulated one. Only Debian's engine is there.
func TestMigrateZFS(t *testing.T) {
	dataset, mountpoint := testfs.ZFS(t)
	h := harness.NewHost(t, mountpoint)
	// The plugin's home is the mount point of a dataset of its own.
	home := filepath.Join("docker", h.PluginName())
	runZFS(t, "create", "-o", "canmount=off", dataset+"/docker")
	runZFS(t, "create", dataset+"/"+home)
	h.DataMounts = append(h.DataMounts, filepath.Join(h.Data, home))

	ctx := testContext(t)
	s := makeScenario(t, ctx, h, "zfs", true, func(name string) bool {
		return fewNames(name) || name == "cowtest/data:1" || name == "limited"
	})
	toPlugin(t, ctx, s, "")
}

func runZFS(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("zfs", args...).CombinedOutput()
	require.NoError(t, err, "zfs %q: %s", args, out)
}
