package migrate

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestMigrateZFS migrates a data root of the old engine's zfs driver to the plugin. It has fewer images than TestDocker, and
// starts engines less often: the machine with the pool may be an emulated one. Only Debian's engine is there. No data is
// copied, undo leaves nothing on the old driver's datasets, and after finish the layers need none of them.
func TestMigrateZFS(t *testing.T) {
	dataset, mountpoint := testfs.ZFS(t)
	h := harness.NewHost(t, mountpoint)
	// The daemon's homes are mount points of datasets of their own.
	for _, home := range []string{"cowshed/containerd", "docker/" + h.PluginName()} {
		runZFS(t, "create", "-o", "canmount=off", dataset+"/"+filepath.Dir(home))
		runZFS(t, "create", dataset+"/"+home)
		h.DataMounts = append(h.DataMounts, filepath.Join(h.Data, home))
	}

	ctx := contextOf(t, 2*testTimeout)
	begun := time.Now()
	passed := func(step string) { t.Logf("%s: %s after the start", step, time.Since(begun).Round(time.Second)) }
	s := makeScenario(t, ctx, h, "zfs", true, func(name string) bool {
		return fewNames(name) || name == "cowtest/data:1" || name == "limited"
	})
	passed("images and containers are made")
	layers := oldDatasets(t, dataset)
	require.NotEmpty(t, layers)
	used := bytesOf(t, dataset)
	m := s.plugin()
	assert.Regexp(t, `to be copied +0`, m.run(t, ctx, "plan"))
	m.run(t, ctx, "run")
	grown := bytesOf(t, dataset) - used
	t.Logf("%d MiB are used, and %d KiB more after the migration", used>>20, grown>>10)
	// Each dataset takes some 100 KiB of its own, which is much beside the small layers here.
	assert.Less(t, grown, used/100+int64(len(layers))*(150<<10))
	m.run(t, ctx, "verify")
	m.run(t, ctx, "undo")
	assert.Equal(t, layers, oldDatasets(t, dataset))
	passed("migrated and undone")
	requireOld(t, ctx, s)
	assert.Equal(t, layers, oldDatasets(t, dataset))
	passed("the old engine has all")

	m.run(t, ctx, "run")
	m.run(t, ctx, "finish", "--yes")
	assert.Empty(t, oldDatasets(t, dataset))
	passed("migrated and finished")
	cowshed := h.StartCowshed("containerd")
	e := h.StartDebianDocker(harness.EngineOptions{Driver: cowshed.Plugin})
	requireSame(t, s.before, recordAll(t, ctx, e, sameDigest, everything), true)
	requireLimit(t, ctx, e, s)
	e.Stop()
	cowshed.Stop()
	passed("the engine has all on the plugin")
}

// oldDatasets lists the datasets and snapshots of the old driver's layers with their origins.
func oldDatasets(t *testing.T, dataset string) []string {
	t.Helper()
	all := strings.Fields(strings.ReplaceAll(runZFS(t, "list", "-Hr", "-t", "all", "-o", "name,origin", dataset), "\t", "="))
	return slices.DeleteFunc(all, func(line string) bool {
		name, _, _ := strings.Cut(line, "=")
		return name == dataset || strings.HasPrefix(name, dataset+"/docker") || strings.HasPrefix(name, dataset+"/cowshed")
	})
}

// bytesOf returns how much space a dataset and those below it use.
func bytesOf(t *testing.T, dataset string) int64 {
	t.Helper()
	pool, _, _ := strings.Cut(dataset, "/")
	out, err := exec.Command("zpool", "sync", pool).CombinedOutput()
	require.NoError(t, err, "%s", out)
	n, err := strconv.ParseInt(strings.TrimSpace(runZFS(t, "get", "-Hpo", "value", "used", dataset)), 10, 64)
	require.NoError(t, err)
	return n
}

func runZFS(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("zfs", args...).CombinedOutput()
	require.NoError(t, err, "zfs %q: %s", args, out)
	return string(out)
}
