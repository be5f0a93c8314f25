package daemons

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// filesystem is a kind of filesystem that daemons keep their data on.
type filesystem struct {
	// fresh makes one for a test and returns where it is mounted.
	fresh func(t *testing.T) string
	// prepare makes the directories that Cowshed needs in it.
	prepare func(t *testing.T, h *harness.Host)
	// volumes lists the volumes that storage drivers have made for layers and that are left.
	volumes func(t require.TestingT, h *harness.Host) []string
	// requireTidy checks, when the volumes are removed, that nothing else stays of them.
	requireTidy func(t *testing.T, h *harness.Host, c *harness.Cowshed)
	// timeout bounds the daemons' work for one test, and soon bounds a wait for something that they are about to do.
	timeout, soon time.Duration
}

func onBtrfs() filesystem {
	return filesystem{
		fresh:       func(t *testing.T) string { return testfs.Btrfs(t) },
		prepare:     func(*testing.T, *harness.Host) {},
		volumes:     volumes,
		requireTidy: requireNoQgroups,
		timeout:     testTimeout,
		soon:        patience,
	}
}

func onZFS() filesystem {
	return filesystem{
		fresh: func(t *testing.T) string {
			_, mountpoint := testfs.ZFS(t)
			return mountpoint
		},
		prepare: func(t *testing.T, h *harness.Host) {
			for _, home := range zfsHomes(h) {
				dataset := rootDataset(t, h) + "/" + home
				runZFS(t, "create", "-o", "canmount=off", filepath.Dir(dataset))
				runZFS(t, "create", dataset)
				h.DataMounts = append(h.DataMounts, filepath.Join(h.Data, home))
			}
		},
		volumes:     func(t require.TestingT, h *harness.Host) []string { return datasets(t, h, "filesystem") },
		requireTidy: requireNoIntents,
		// The machine with the pool may be an emulated one.
		timeout: 2 * testTimeout,
		soon:    2 * patience,
	}
}

// zfsHomes are the directories in which Cowshed keeps volumes for containerd and for Docker Engine. On ZFS each is the
// mount point of a dataset, which has the same name.
func zfsHomes(h *harness.Host) []string {
	return []string{"cowshed/containerd", "docker/" + h.PluginName()}
}

// rootDataset returns the name of the dataset that the host keeps its data on.
func rootDataset(t require.TestingT, h *harness.Host) string {
	names := runZFS(t, "list", "-H", "-o", "name", h.Data)
	require.Len(t, names, 1)
	return names[0]
}

// datasets lists the datasets that storage drivers have made for layers, or those of another kind.
func datasets(t require.TestingT, h *harness.Host, kind string) []string {
	root := rootDataset(t, h)
	known := []string{root}
	for _, home := range zfsHomes(h) {
		known = append(known, root+"/"+filepath.Dir(home), root+"/"+home)
	}
	return slices.DeleteFunc(runZFS(t, "list", "-H", "-o", "name", "-t", kind, "-r", root), func(name string) bool {
		return slices.Contains(known, name)
	})
}

// requireNoIntents checks that Cowshed, which is started again, has nothing begun and not finished and nothing mounted.
func requireNoIntents(t *testing.T, h *harness.Host, c *harness.Cowshed) {
	t.Helper()
	c.Restart()
	assert.Empty(t, datasets(t, h, "all"))
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for _, home := range zfsHomes(h) {
		dir := filepath.Join(h.Data, home, "zfs")
		assert.NotContains(t, string(mounts), " "+filepath.Join(dir, "graph")+"/")
		assert.NotContains(t, string(mounts), " "+filepath.Join(dir, "views")+"/")
		intents, err := os.ReadDir(filepath.Join(dir, "intents"))
		if errors.Is(err, os.ErrNotExist) {
			continue // no daemon has used this home
		}
		require.NoError(t, err)
		assert.Empty(t, intents)
	}
}

// runZFS runs zfs and returns the words that it prints.
func runZFS(t require.TestingT, args ...string) []string {
	out, err := exec.Command("zfs", args...).CombinedOutput()
	require.NoError(t, err, "zfs %q: %s", args, out)
	return strings.Fields(string(out))
}
