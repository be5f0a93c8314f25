package migrate

import (
	"context"
	"errors"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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

// TestKilled kills a run at random moments. Afterwards undo leaves nothing, and the next run goes on. In the end the old
// layers are removed.
func TestKilled(t *testing.T) {
	t.Run("btrfs to the plugin", func(t *testing.T) {
		s := fewThings(t, "btrfs")
		plugin := sync.OnceValue(func() string { return s.host.StartCowshed("containerd").Plugin })
		s.killAndCheck(t, s.plugin(), func() {}, func() {
			e := s.host.StartDebianDocker(harness.EngineOptions{Driver: plugin()})
			requireSame(t, s.before, recordOf(t, testContext(t), e, sameDigest), true)
			e.Stop()
		})
	})
	t.Run("overlay2 to containerd", func(t *testing.T) {
		s := fewThings(t, "overlay2")
		ctx := testContext(t)
		containerd, store, m := s.containerd()
		s.killAndCheck(t, m, func() { requireNothing(t, ctx, store) }, func() {
			e := s.host.StartDocker(harness.EngineOptions{Driver: harness.CowshedSnapshotter, Containerd: containerd})
			requireSame(t, s.before, recordOf(t, ctx, e, configIn(t, ctx, store)), false)
			e.Stop()
		})
	})
}

func fewThings(t *testing.T, driver string) scenario {
	t.Helper()
	return makeScenario(t, testContext(t), harness.NewHost(t, testfs.Btrfs(t)), driver, false, fewNames)
}

// killAndCheck kills a migration. nothing checks that the target has nothing, and whole that an engine has all.
func (s scenario) killAndCheck(t *testing.T, m migration, nothing, whole func()) {
	t.Helper()
	ctx := testContext(t)
	root := readRoot(t, s)
	begun := time.Now()
	m.run(t, ctx, "run")
	took := time.Since(begun)
	m.run(t, ctx, "undo")
	requireRoot(t, s, root)
	nothing()

	seed := rand.Uint64()
	t.Logf("seed %d, a run takes %s", seed, took)
	random := rand.New(rand.NewPCG(seed, 0))
	rounds := 4
	switch {
	case testfs.Long():
		rounds = 100
	case s.driver == "zfs": // the machine with the pool may be an emulated one
		rounds = 2
	}
	for range rounds {
		m.killed(t, ctx, time.Duration(random.Int64N(int64(took))))
		m.undoKilled(t, ctx)
		requireRoot(t, s, root)
		nothing()
	}
	// Each run comes some steps farther.
	kills := 0
	for !m.killed(t, ctx, took*time.Duration(kills+1)/6) {
		kills++
	}
	t.Logf("killed %d times before the end", kills)
	m.run(t, ctx, "run")
	m.run(t, ctx, "verify")
	whole()

	_, err := m.try(ctx, "finish")
	require.Error(t, err, "it asks for a confirmation")
	require.DirExists(t, filepath.Join(s.engine.Root, "image", s.driver))
	m.finishKilled(t, ctx, took)
	assert.NoDirExists(t, filepath.Join(s.engine.Root, s.driver))
	whole()
}

// finishKilled is finish that is killed again and again, each time later, until it comes to its end.
func (m migration) finishKilled(t *testing.T, ctx context.Context, took time.Duration) {
	t.Helper()
	kills := 0
	for after := took / 100; ; after += after / 3 {
		out, err := m.kill(t, ctx, after, "finish", "--yes")
		var exit *exec.ExitError
		if err == nil || kills > 0 && errors.As(err, &exit) && exit.ExitCode() == exitNotFound { // it was killed after its last step
			break
		}
		require.EqualError(t, err, "signal: killed", out)
		kills++
	}
	t.Logf("finish was killed %d times before the end", kills)
	assert.Positive(t, kills)
}

// exitNotFound is the exit code of a step that finds no root, or no journal.
const exitNotFound = 3

// killed kills a run after a time, and returns whether the run had ended before.
func (m migration) killed(t *testing.T, ctx context.Context, after time.Duration) bool {
	t.Helper()
	out, err := m.kill(t, ctx, after, "run")
	if err != nil {
		require.EqualError(t, err, "signal: killed", out)
	}
	return err == nil
}

// kill runs a step, and kills it after a time.
func (m migration) kill(t *testing.T, ctx context.Context, after time.Duration, step string, flags ...string) (out string, err error) {
	t.Helper()
	cmd := m.command(ctx, step, flags...)
	var b strings.Builder
	cmd.Stdout, cmd.Stderr = &b, &b
	require.NoError(t, cmd.Start())
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	timer.Stop()
	return b.String(), err
}

// undoKilled is undo after a run that may have been killed before it began.
func (m migration) undoKilled(t *testing.T, ctx context.Context) {
	t.Helper()
	if out, err := m.try(ctx, "undo"); err != nil {
		require.Contains(t, err.Error(), "no migration", out)
	}
}

// rootOptions leave out the times of directories in which a migration has made and removed names, and of files that it
// has changed and restored. The plugin's home stays, without volumes.
var rootOptions = treecmp.Options{
	LinksInTree: true,
	SkipTime: func(path string) bool {
		return path == "image" || path == "containers" || filepath.Dir(path) == "containers" || filepath.Ext(path) == ".json"
	},
	Skip: func(path string) bool { return strings.HasPrefix(path, "cowshed-") && !strings.Contains(path, "/") },
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
	for _, pattern := range []string{"subvolumes/*", "staging/*", "removing/*", "views/*"} {
		left, err := filepath.Glob(filepath.Join(s.engine.Root, s.host.PluginName(), "btrfs", pattern))
		require.NoError(t, err)
		assert.Empty(t, left)
	}
	assert.NoDirExists(t, filepath.Join(s.engine.Root, "image", s.host.PluginName()))
}
