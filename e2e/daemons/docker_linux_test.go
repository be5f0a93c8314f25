package daemons

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// engine is a Docker Engine on the storage under test.
type engine struct {
	name string
	// driver is what docker info calls the storage.
	driver string
	// size is a limit of containers that is less than what limitScript writes, or empty where there are none.
	size string
	// start runs the engine and what it needs. left lists what is stored when nothing should be.
	start func(t *testing.T, h *harness.Host) (e *harness.Engine, left func() []string)
}

// engines are those under test, each on btrfs. containerd's btrfs snapshotter is not among them: BuildKit mounts
// again what it was given for a snapshot before that was committed, and that snapshotter then has another subvolume
// in its place.
func engines() []engine {
	return []engine{
		{"docker-proxied", "proxied", "", onSnapshotter(proxied())},
		{"debian-btrfs", "btrfs", "32m", onGraphDriver("btrfs")},
	}
}

// onSnapshotter starts the engine of today on a containerd with the snapshotter.
func onSnapshotter(s snapshotter) func(*testing.T, *harness.Host) (*harness.Engine, func() []string) {
	return func(t *testing.T, h *harness.Host) (*harness.Engine, func() []string) {
		containerd := h.StartContainerd("containerd", s.start(t, h))
		store := containerd.Store("moby", s.name)
		return h.StartDocker(harness.EngineOptions{Driver: s.name, Containerd: containerd}), func() []string {
			ctx := store.Context(testContext(t))
			require.NoError(t, store.CollectGarbage(ctx))
			keys, err := store.Keys(ctx)
			require.NoError(t, err)
			return keys
		}
	}
}

// onGraphDriver starts Debian's engine on a graph driver.
func onGraphDriver(driver string) func(*testing.T, *harness.Host) (*harness.Engine, func() []string) {
	return func(t *testing.T, h *harness.Host) (*harness.Engine, func() []string) {
		return h.StartDebianDocker(harness.EngineOptions{Driver: driver}), func() []string {
			return testfs.Subvolumes(t, h.Data)
		}
	}
}

// inEach runs the test with an engine that has the sample image. When it is done, nothing stays of what it has made.
func inEach(t *testing.T, list []engine, test func(t *testing.T, s engine, h *harness.Host, e *harness.Engine)) {
	for _, s := range list {
		t.Run(s.name, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			e, left := s.start(t, h)
			ctx := testContext(t)
			require.NoError(t, e.Load(ctx, h.SaveImage(sampleImage(t, h), "cowshed/sample:1")))

			test(t, s, h, e)

			require.NoError(t, e.RemoveAllContainers(ctx))
			// BuildKit lets go of what it used some time after it has answered; until then that is not pruned.
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				require.NoError(c, e.Prune(ctx))
				images, err := e.Images(ctx)
				require.NoError(c, err)
				assert.Empty(c, images)
				assert.Empty(c, left())
			}, 20*time.Second, 100*time.Millisecond)
		})
	}
}

// TestDocker takes an image through the life it has in an engine.
func TestDocker(t *testing.T) {
	inEach(t, engines(), func(t *testing.T, s engine, h *harness.Host, e *harness.Engine) {
		ctx := testContext(t)
		info, err := e.Info(ctx, client.InfoOptions{})
		require.NoError(t, err)
		assert.Equal(t, s.driver, info.Info.Driver)

		result, err := e.RunContainer(ctx, "one", "cowshed/sample:1", changeScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "changed\n"}, result)
		changes, err := e.Diff(ctx, "one")
		require.NoError(t, err)
		assert.Equal(t, changedPaths, changes)

		require.NoError(t, e.Commit(ctx, "one", "cowshed/sample:2"))
		result, err = e.RunContainer(ctx, "two", "cowshed/sample:2", checkScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "as committed\n"}, result)

		require.NoError(t, e.CreateContainer(ctx, "three", "cowshed/sample:2", "exec sleep 600", nil))
		require.NoError(t, e.StartContainer(ctx, "three"))
		result, err = e.Exec(ctx, "three", "echo exec >/data/exec && cat /data/exec")
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "exec\n"}, result)
		changes, err = e.Diff(ctx, "three")
		require.NoError(t, err)
		assert.Equal(t, []string{"C /data", "A /data/exec"}, changes)

		// What was saved is loaded again after all of it is gone.
		saved := filepath.Join(h.Dir, "saved.tar")
		require.NoError(t, e.Save(ctx, "cowshed/sample:2", saved))
		require.NoError(t, e.RemoveAllContainers(ctx))
		require.NoError(t, e.Prune(ctx))
		require.NoError(t, e.Load(ctx, saved))
		result, err = e.RunContainer(ctx, "again", "cowshed/sample:2", checkScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
	})
}

// buildContext is a context whose image has the number n and the changes of changeScript. No layer is the same as with
// another number: Debian's engine leaks the subvolume of a layer that BuildKit and the classic builder both made.
func buildContext(n int) []harness.File {
	return []harness.File{
		{Path: "Dockerfile", Data: fmt.Sprintf(`FROM cowshed/sample:1 AS first
COPY change.sh /
RUN sh /change.sh && rm /change.sh
FROM first
COPY --from=first /data/new/file /copied
RUN test "$(cat /copied)" = new && echo %d >/number
`, n)},
		{Path: "change.sh", Data: fmt.Sprintf("%s\n# %d\n", changeScript, n)},
	}
}

// TestDockerBuild builds images with each builder, two at the same time, while containers run.
func TestDockerBuild(t *testing.T) {
	const runs = 10
	inEach(t, engines(), func(t *testing.T, _ engine, _ *harness.Host, e *harness.Engine) {
		ctx := testContext(t)
		var g errgroup.Group
		for n, builder := range []build.BuilderVersion{build.BuilderV1, build.BuilderBuildKit} {
			g.Go(func() error {
				image := fmt.Sprintf("cowshed/built:%d", n)
				if err := e.Build(ctx, image, buildContext(n), builder); err != nil {
					return err
				}
				result, err := e.RunContainer(ctx, fmt.Sprintf("built%d", n), image, "cat /number; "+checkScript, nil)
				if want := fmt.Sprintf("%d\nas committed\n", n); err != nil || result.Output != want {
					return fmt.Errorf("%s: %v: %w", image, result, err)
				}
				return nil
			})
		}
		for n := range runs {
			g.Go(func() error {
				name := fmt.Sprintf("run%d", n)
				result, err := e.RunContainer(ctx, name, "cowshed/sample:1", changeScript, nil)
				if err != nil || result.Output != "changed\n" {
					return fmt.Errorf("%s: %v: %w", name, result, err)
				}
				return e.Remove(ctx, name)
			})
		}
		require.NoError(t, g.Wait())
	})
}

// TestDockerRestart stops the engine, and then kills it, while a container exists.
func TestDockerRestart(t *testing.T) {
	inEach(t, engines(), func(t *testing.T, _ engine, _ *harness.Host, e *harness.Engine) {
		ctx := testContext(t)
		result, err := e.RunContainer(ctx, "one", "cowshed/sample:1", changeScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "changed\n"}, result)
		e.Restart()
		changes, err := e.Diff(ctx, "one")
		require.NoError(t, err)
		assert.Equal(t, changedPaths, changes)
		require.NoError(t, e.Commit(ctx, "one", "cowshed/sample:2"))
		e.Kill()
		e.Daemon.Start()
		result, err = e.RunContainer(ctx, "two", "cowshed/sample:2", checkScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
	})
}

// TestDockerLimit writes to the limit of a container, which then can delete and write again.
func TestDockerLimit(t *testing.T) {
	// Nothing limits a container in the containerd image store.
	limited := slices.DeleteFunc(engines(), func(s engine) bool { return s.size == "" })
	inEach(t, limited, func(t *testing.T, s engine, _ *harness.Host, e *harness.Engine) {
		ctx := testContext(t)
		result, err := e.RunContainer(ctx, "one", "cowshed/sample:1", limitScript, map[string]string{"size": s.size})
		require.NoError(t, err)
		assert.Contains(t, result.Output, "Disk quota exceeded")
		assert.Contains(t, result.Output, "and then: again\n")
	})
}

// limitScript writes 64 MiB, deletes them and writes a little.
const limitScript = `dd if=/dev/zero of=/big bs=1M count=64 conv=fsync
rm /big
sync
echo again >/small && echo "and then: $(cat /small)"`
