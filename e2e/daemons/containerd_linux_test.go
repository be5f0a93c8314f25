package daemons

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// snapshotter is one under test.
type snapshotter struct {
	name string
	// start runs what serves it, if it is not part of containerd, and says how containerd reaches it.
	start func(t *testing.T, h *harness.Host) harness.ContainerdOptions
}

// builtin is a snapshotter of containerd itself.
func builtin(name string) snapshotter {
	return snapshotter{name, func(*testing.T, *harness.Host) harness.ContainerdOptions { return harness.ContainerdOptions{} }}
}

// snapshotters are those under test, each on btrfs. Containers of the first containerd of a host are on them, whose
// name is "containerd".
func snapshotters() []snapshotter {
	return []snapshotter{builtin("btrfs"), proxied()}
}

func inEachSnapshotter(t *testing.T, test func(t *testing.T, s snapshotter)) {
	for _, s := range snapshotters() {
		t.Run(s.name, func(t *testing.T) { test(t, s) })
	}
}

// TestContainerd takes an image through the life it has in containerd: imported, run, changed, committed, pushed,
// and pulled by another containerd.
func TestContainerd(t *testing.T) {
	inEachSnapshotter(t, func(t *testing.T, s snapshotter) {
		testfs.CheckLeaks(t)
		h := harness.NewHost(t, testfs.Btrfs(t))
		registry := h.StartRegistry()
		here := h.StartContainerd("containerd", s.start(t, h)).Store("e2e", s.name)
		ctx := here.Context(testContext(t))

		img, err := here.ImportFile(ctx, h.SaveImage(sampleImage(t, h), "cowshed/sample:1"))
		require.NoError(t, err)

		result, err := here.Run(ctx, "one", img, changeScript)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "changed\n"}, result)

		committed, err := here.Commit(ctx, "one", img, registry+"/sample:2")
		require.NoError(t, err)
		require.NoError(t, here.SnapshotTree(ctx, "one", func(container string) error {
			return here.ImageTree(ctx, committed, func(image string) error {
				treecmp.Equal(t, container, image, sameLayer)
				return nil
			})
		}))

		require.NoError(t, here.PushImage(ctx, committed, committed.Name()))
		there := h.StartContainerd("there", harness.ContainerdOptions{}).Store("e2e", "overlayfs")
		pulled, err := there.PullImage(ctx, committed.Name())
		require.NoError(t, err)
		assert.Equal(t, committed.Target().Digest, pulled.Target().Digest)
		require.NoError(t, here.ImageTree(ctx, committed, func(a string) error {
			return there.ImageTree(ctx, pulled, func(b string) error {
				treecmp.Equal(t, a, b, sameLayer)
				return nil
			})
		}))
		result, err = there.Run(ctx, "one", pulled, checkScript)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "as committed\n"}, result)

		for _, store := range []*harness.Store{here, there} {
			require.NoError(t, store.Clear(ctx))
			keys, err := store.Keys(ctx)
			require.NoError(t, err)
			assert.Empty(t, keys)
		}
	})
}

// TestContainerdRestart kills containerd while a container runs, which goes on running, and whose changes can then
// be committed.
func TestContainerdRestart(t *testing.T) {
	inEachSnapshotter(t, func(t *testing.T, s snapshotter) {
		h := harness.NewHost(t, testfs.Btrfs(t))
		containerd := h.StartContainerd("containerd", s.start(t, h))
		store := containerd.Store("e2e", s.name)
		ctx := store.Context(testContext(t))
		img, err := store.ImportFile(ctx, h.SaveImage(sampleImage(t, h), "cowshed/sample:1"))
		require.NoError(t, err)
		c, err := store.Create(ctx, "one", img, changeScript+"; exec sleep 600")
		require.NoError(t, err)
		output := filepath.Join(h.Dir, "one.out")
		require.NoError(t, store.StartTask(ctx, c, output))
		require.NoError(t, harness.WaitText(ctx, output, "changed"))

		containerd.Kill()
		containerd.Start()

		c, err = store.LoadContainer(ctx, "one")
		require.NoError(t, err)
		require.NoError(t, store.StopTask(ctx, c))
		committed, err := store.Commit(ctx, "one", img, "cowshed/sample:2")
		require.NoError(t, err)
		result, err := store.Run(ctx, "two", committed, checkScript)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "as committed\n"}, result)

		require.NoError(t, store.Clear(ctx))
		keys, err := store.Keys(ctx)
		require.NoError(t, err)
		assert.Empty(t, keys)
	})
}

// TestContainerdAtOnce runs, commits and removes containers of one image at the same time.
func TestContainerdAtOnce(t *testing.T) {
	const containers = 10
	inEachSnapshotter(t, func(t *testing.T, s snapshotter) {
		h := harness.NewHost(t, testfs.Btrfs(t))
		store := h.StartContainerd("containerd", s.start(t, h)).Store("e2e", s.name)
		ctx := store.Context(testContext(t))
		img, err := store.ImportFile(ctx, h.SaveImage(sampleImage(t, h), "cowshed/sample:1"))
		require.NoError(t, err)

		var g errgroup.Group
		for n := range containers {
			g.Go(func() error {
				id := fmt.Sprintf("c%d", n)
				result, err := store.Run(ctx, id, img, fmt.Sprintf("echo %d >/number; %s", n, changeScript))
				if err != nil || result.Code != 0 {
					return fmt.Errorf("%s: %v: %w", id, result, err)
				}
				committed, err := store.Commit(ctx, id, img, "cowshed/"+id)
				if err != nil {
					return err
				}
				result, err = store.Run(ctx, id+"-again", committed, "cat /number; "+checkScript)
				if want := fmt.Sprintf("%d\nas committed\n", n); err != nil || result.Output != want {
					return fmt.Errorf("%s: %v: %w", id, result, err)
				}
				return store.RemoveContainer(ctx, id)
			})
		}
		require.NoError(t, g.Wait())

		require.NoError(t, store.Clear(ctx))
		keys, err := store.Keys(ctx)
		require.NoError(t, err)
		assert.Empty(t, keys)
	})
}
