package daemons

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// sharedRoots is the line of Cowshed's configuration that gives containers shared roots.
const sharedRoots = `root_style = "shared"`

// rootScript prints the type of the filesystem that a container has as its root.
const rootScript = `awk '$2 == "/" { print $3 }' /proc/mounts`

// checkNotes checks, when the volumes are removed, that the homes below data have no note of a shared root any more.
func checkNotes(t *testing.T, data string) {
	t.Helper()
	t.Cleanup(func() {
		notes, err := filepath.Glob(filepath.Join(data, "*/*/*/shared/*"))
		require.NoError(t, err)
		assert.Empty(t, notes)
	})
}

// sharing is a test in a containerd in which a container has this filesystem as its root.
func sharing(root string, test containerdTest) containerdTest {
	return func(t *testing.T, ctx context.Context, h containerdHost) {
		t.Helper()
		checkNotes(t, h.Data)
		img, err := h.store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
		require.NoError(t, err)
		result, err := h.store.Run(ctx, "root", img, rootScript)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: root + "\n"}, result)
		requireCleared(t, ctx, h.store)
		test(t, ctx, h)
	}
}

// sharingEngine is sharing in an engine.
func sharingEngine(root func(e engineHost) string, test engineTest) engineTest {
	return func(t *testing.T, ctx context.Context, s engine, e engineHost) {
		t.Helper()
		checkNotes(t, e.host.Data)
		result, err := e.RunContainer(ctx, "root", "cowshed/sample:1", rootScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: root(e) + "\n"}, result)
		require.NoError(t, e.Remove(ctx, "root"))
		test(t, ctx, s, e)
	}
}

func sharingEngines() []engine {
	return []engine{
		{"docker-cowshed", "", onSnapshotter(cowshed(sharedRoots))},
		{"debian-cowshed", "32m", onPlugin(sharedRoots)},
	}
}

// TestContainerdShared is TestContainerd with shared roots. The long variant has other tests too.
func TestContainerdShared(t *testing.T) { containerdShared(t, onBtrfs(), "overlay") }

// TestContainerdSharedZFS is TestContainerdShared on ZFS, where containers have the root style snapshot: others cannot mount
// an overlay of volumes that have no path.
func TestContainerdSharedZFS(t *testing.T) { containerdShared(t, onZFS(), "zfs") }

func containerdShared(t *testing.T, fs filesystem, root string) {
	t.Helper()
	in := func(name string, test containerdTest) {
		t.Run(name, func(t *testing.T) {
			inEachSnapshotterOn(t, fs, []snapshotter{cowshed(sharedRoots)}, sharing(root, test))
		})
	}
	in("life", liveInContainerd)
	if !testfs.Long() {
		return
	}
	in("limit", runToLimit)
	in("at once", runAtOnce)
	in("restart", restartContainerd)
	in("many files", commitFewOfMany)
}

// TestDockerShared is TestDocker with shared roots. The long variant has other tests too.
func TestDockerShared(t *testing.T) {
	dockerShared(t, onBtrfs(), func(engineHost) string { return "overlay" })
}

// TestDockerSharedZFS is TestDockerShared on ZFS. With the containerd image store, containers have the root style snapshot
// there, as TestContainerdSharedZFS says.
func TestDockerSharedZFS(t *testing.T) {
	dockerShared(t, onZFS(), func(e engineHost) string {
		if e.containerd != nil {
			return "zfs"
		}
		return "overlay"
	})
}

func dockerShared(t *testing.T, fs filesystem, root func(e engineHost) string) {
	t.Helper()
	in := func(name string, engines []engine, test engineTest) {
		t.Run(name, func(t *testing.T) { inEachOn(t, fs, engines, sharingEngine(root, test)) })
	}
	in("life", sharingEngines(), liveInEngine)
	if !testfs.Long() {
		return
	}
	in("limit", sharingEngines()[1:], writeToLimit)
	in("build", sharingEngines(), buildAtOnce)
	in("restart", sharingEngines(), restartDaemons)
	in("many files", sharingEngines(), changeFewOfMany)
	in("kill under build", sharingEngines(), killUnderBuild)
}
