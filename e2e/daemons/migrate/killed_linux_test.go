package migrate

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// fewNames are the images and containers of a small scenario.
func fewNames(name string) bool {
	switch name {
	case "cowtest/base:1", "cowtest/shared:1", "cowtest/shared:2", "cowtest/hardlinks:1", "cowtest/replaced:1", "cowtest/sample:1",
		"changed", "created", "replaced":
		return true
	}
	return false
}

// TestKilled kills a run at random moments. Afterwards undo leaves nothing, and the next run goes on.
func TestKilled(t *testing.T) {
	for _, driver := range []string{"btrfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			s := makeScenarioOf(t, ctx, h, driver, false, fewNames)
			m := s.plugin()
			root := readRoot(t, s)

			begun := time.Now()
			m.run(t, ctx, "run")
			whole := time.Since(begun)
			m.run(t, ctx, "undo")
			requireRoot(t, s, root)

			seed := rand.Uint64()
			t.Logf("seed %d, a run takes %s", seed, whole)
			random := rand.New(rand.NewPCG(seed, 0))
			rounds := 4
			if testfs.Long() {
				rounds = 100
			}
			for range rounds {
				m.killed(t, ctx, time.Duration(random.Int64N(int64(whole))))
				m.undoKilled(t, ctx)
				requireRoot(t, s, root)
			}
			// Each run comes some steps farther.
			kills := 0
			for !m.killed(t, ctx, time.Duration(random.Int64N(int64(whole)))+whole/8) {
				kills++
			}
			t.Logf("killed %d times", kills)
			m.run(t, ctx, "run")
			m.run(t, ctx, "verify")
			cowshed := h.StartCowshed("containerd")
			e := h.StartDebianDocker(harness.EngineOptions{Driver: cowshed.Plugin})
			requireSame(t, s.before, recordOf(t, ctx, e, sameDigest), true)
			e.Stop()
		})
	}
}

// killed kills a run after a time, and returns whether the run had ended before.
func (m migration) killed(t *testing.T, ctx context.Context, after time.Duration) bool {
	t.Helper()
	cmd := m.command(ctx, "run")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	if err == nil {
		return true
	}
	require.Equal(t, "signal: killed", err.Error(), out.String())
	return false
}

// undoKilled is undo after a run that may have been killed before it began.
func (m migration) undoKilled(t *testing.T, ctx context.Context) {
	t.Helper()
	if out, err := m.try(ctx, "undo"); err != nil {
		require.Contains(t, err.Error(), "no migration", out)
	}
}

// rootOptions leave out the times of directories in which a migration has made and removed names.
var rootOptions = treecmp.Options{
	LinksInTree: true,
	SkipTime: func(path string) bool {
		return path == "image" || path == "containers" || filepath.Dir(path) == "containers"
	},
}

func readRoot(t *testing.T, s scenario) treecmp.Tree {
	t.Helper()
	tree, err := treecmp.Read(s.engine.Root, rootOptions)
	require.NoError(t, err)
	return tree
}

// requireRoot checks that the data root, the migration's target too, is as it was.
func requireRoot(t *testing.T, s scenario, want treecmp.Tree) {
	t.Helper()
	assert.Empty(t, want.Diff(readRoot(t, s), rootOptions), "before and after")
}
