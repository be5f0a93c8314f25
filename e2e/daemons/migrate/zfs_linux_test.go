package migrate

import (
	"context"
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

// TestMigrateZFS migrates a data root of the old engine's zfs driver. In the short variant, it has fewer images than TestDocker, and
// starts engines less often: the machine with the pool may be an emulated one. No data is copied, undo leaves nothing on the
// old driver's datasets, and after finish the layers need none of them.
func TestMigrateZFS(t *testing.T) {
	t.Run("plugin", zfsToPlugin)
	t.Run("containerd", zfsToDocker29)
	t.Run("killed", zfsKilled)
}

// zfsScenario is a scenario on a dataset of its own.
type zfsScenario struct {
	scenario
	dataset string
	layers  []string // oldDatasets before a migration
	passed  func(step string)
}

// makeZFS makes a scenario with the wanted images and containers. In it, the daemon's homes are mount points of datasets of their
// own.
func makeZFS(t *testing.T, ctx context.Context, wanted func(name string) bool) zfsScenario {
	t.Helper()
	dataset, mountpoint := testfs.ZFS(t)
	h := harness.NewHost(t, mountpoint)
	for _, home := range []string{"cowshed/containerd", "docker/" + h.PluginName()} {
		runZFS(t, "create", "-o", "canmount=off", dataset+"/"+filepath.Dir(home))
		runZFS(t, "create", dataset+"/"+home)
		h.DataMounts = append(h.DataMounts, filepath.Join(h.Data, home))
	}
	begun := time.Now()
	s := zfsScenario{dataset: dataset, passed: func(step string) { t.Logf("%s: %s after the start", step, time.Since(begun).Round(time.Second)) }}
	s.scenario = makeScenario(t, ctx, h, "zfs", wanted("limited"), wanted)
	s.layers = oldDatasets(t, dataset)
	require.NotEmpty(t, s.layers)
	s.passed("images and containers are made")
	return s
}

// onZFS tells which images and containers a test on ZFS has.
func onZFS(name string) bool {
	return testfs.Long() || fewNames(name) || name == "cowtest/data:1" || name == "limited"
}

// runs calls plan, which says that no data is copied, and run. It returns how much more space is used then.
func (s zfsScenario) runs(t *testing.T, ctx context.Context, m migration) (used, grown int64) {
	t.Helper()
	assert.Regexp(t, `to be copied +0`, m.run(t, ctx, "plan"))
	used = bytesOf(t, s.dataset)
	m.run(t, ctx, "run")
	grown = bytesOf(t, s.dataset) - used
	t.Logf("%d MiB are used, and %d KiB more after the migration", used>>20, grown>>10)
	s.passed("migrated")
	return used, grown
}

func zfsToPlugin(t *testing.T) {
	ctx := contextOf(t, 2*testTimeout)
	s := makeZFS(t, ctx, onZFS)
	m := s.plugin()
	used, grown := s.runs(t, ctx, m)
	// Each dataset takes some 100 KiB of its own, which is much beside the small layers here.
	assert.Less(t, grown, used/100+int64(len(s.layers))*(150<<10))
	m.run(t, ctx, "verify")
	m.run(t, ctx, "undo")
	assert.Equal(t, s.layers, oldDatasets(t, s.dataset))
	s.passed("undone")
	requireOld(t, ctx, s.scenario, m)
	assert.Equal(t, s.layers, oldDatasets(t, s.dataset))
	s.passed("the old engine has all")

	m.run(t, ctx, "run")
	m.run(t, ctx, "finish", "--yes")
	assert.Empty(t, oldDatasets(t, s.dataset))
	s.passed("migrated and finished")
	cowshed := s.host.StartCowshed("containerd")
	e := s.host.StartDebianDocker(harness.EngineOptions{Driver: cowshed.Plugin})
	requireSame(t, s.before, recordAll(t, ctx, e, sameDigest, everything), true)
	requireLimit(t, ctx, e, s.scenario)
	e.Stop()
	cowshed.Stop()
	s.passed("the engine has all on the plugin")
}

func zfsToDocker29(t *testing.T) {
	ctx := contextOf(t, 2*testTimeout)
	s := makeZFS(t, ctx, onZFS)
	containerd, store, m := s.containerd()
	s.runs(t, ctx, m)
	m.run(t, ctx, "verify")
	e := s.host.StartDocker(harness.EngineOptions{Driver: harness.CowshedSnapshotter, Containerd: containerd})
	requireSame(t, s.before, recordAll(t, ctx, e, configIn(t, ctx, store), everything), false)
	e.Stop()
	s.passed("Docker 29 has all")
	m.run(t, ctx, "undo")
	requireNothing(t, ctx, store)
	assert.Equal(t, s.layers, oldDatasets(t, s.dataset))
	s.passed("undone")

	m.run(t, ctx, "run")
	m.run(t, ctx, "finish", "--yes")
	assert.Empty(t, oldDatasets(t, s.dataset))
	s.passed("migrated and finished")
	e.Daemon.Start()
	requireSame(t, s.before, recordAll(t, ctx, e, configIn(t, ctx, store), everything), false)
	requireLimit(t, ctx, e, s.scenario)
	e.Stop()
	s.passed("Docker 29 has all without the old datasets")
}

func zfsKilled(t *testing.T) {
	ctx := contextOf(t, 2*testTimeout)
	s := makeZFS(t, ctx, func(name string) bool {
		return slices.Contains([]string{"cowtest/base:1", "cowtest/shared:1", "cowtest/shared:2", "cowtest/replaced:1", "replaced"}, name)
	})
	plugin := s.dataset + "/docker/" + s.host.PluginName()
	s.killAndCheck(t, s.plugin(), func() {
		assert.Equal(t, s.layers, oldDatasets(t, s.dataset))
		assert.Equal(t, plugin, strings.TrimSpace(runZFS(t, "list", "-Hr", "-t", "all", "-o", "name", plugin)))
	}, func() {})
	assert.Empty(t, oldDatasets(t, s.dataset))
	cowshed := s.host.StartCowshed("containerd")
	e := s.host.StartDebianDocker(harness.EngineOptions{Driver: cowshed.Plugin})
	requireSame(t, s.before, recordAll(t, ctx, e, sameDigest, everything), true)
	e.Stop()
	cowshed.Stop()
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
