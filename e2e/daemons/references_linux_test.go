package daemons

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// layerCommands runs commands of cowshed about containers.
type layerCommands struct {
	t       *testing.T
	ctx     context.Context
	cowshed *harness.Cowshed
}

func (c layerCommands) ok(args ...string) string {
	c.t.Helper()
	out, err := c.cowshed.Output(c.ctx, append(args, "--config", c.cowshed.Config)...)
	require.NoError(c.t, err)
	return out
}

// okOnceStopped is ok for a container that has just been stopped: an engine may answer before it has unmounted the root.
func (c layerCommands) okOnceStopped(args ...string) {
	c.t.Helper()
	var err error
	require.EventuallyWithT(c.t, func(t *assert.CollectT) {
		_, err = c.cowshed.Output(c.ctx, append(args, "--config", c.cowshed.Config)...)
		if err != nil {
			assert.NotContains(t, err.Error(), "stop the container first")
		}
	}, patience, 50*time.Millisecond)
	require.NoError(c.t, err)
}

func (c layerCommands) fails(says string, args ...string) {
	c.t.Helper()
	require.ErrorContains(c.t, c.cowshed.Command(c.ctx, append(args, "--config", c.cowshed.Config)...), says)
}

// TestDockerReferences: docker:NAME is compared, forked and snapshotted while the container runs. It is rolled back while the
// container is stopped, and the next start sees that. Its snapshots go with it, and its fork stays.
func TestDockerReferences(t *testing.T) {
	inEach(t, dockerWith(withDockerAPI()), func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
		c := layerCommands{t, ctx, e.cowshed}
		require.NoError(t, e.CreateContainer(ctx, "web", "cowshed/sample:1", idleScript, nil))
		require.NoError(t, e.StartContainer(ctx, "web"))
		exec := func(script string) string {
			t.Helper()
			result, err := e.Exec(ctx, "web", script)
			require.NoError(t, err)
			return result.Output
		}
		exec("echo 1 >/kept")
		assert.Contains(t, c.ok("changes", "docker:web"), "A /kept\n")
		assert.Equal(t, "before\n", c.ok("snapshot", "docker:web", "before"))
		assert.Equal(t, "fork:try\n", c.ok("fork", "docker:web", "try"))
		exec("rm /kept; echo 2 >/new")
		changes := c.ok("changes", "docker:web", "docker:web@before")
		assert.Contains(t, changes, "D /kept\n")
		assert.Contains(t, changes, "A /new\n")
		c.fails("stop the container first", "rollback", "docker:web", "before")
		e.cowshed.Kill()
		e.cowshed.Start()
		e.reconnect(ctx)

		_, err := e.ContainerStop(ctx, "web", client.ContainerStopOptions{Timeout: new(int)})
		require.NoError(t, err)
		c.okOnceStopped("rollback", "docker:web", "before")
		require.NoError(t, e.StartContainer(ctx, "web"))
		assert.Equal(t, "1\n", exec("cat /kept; ls /new 2>/dev/null"))
		diff, err := e.ContainerDiff(ctx, "web", client.ContainerDiffOptions{})
		require.NoError(t, err)
		paths := make([]string, 0, len(diff.Changes))
		for _, change := range diff.Changes {
			paths = append(paths, change.Path)
		}
		assert.Contains(t, paths, "/kept", "the engine's own diff counts from the image")
		assert.NotContains(t, paths, "/new")
		assert.Contains(t, c.ok("log", "docker:web"), "@before-rollback-1")

		require.NoError(t, e.Remove(ctx, "web"))
		store := e.containerd.Store("moby", harness.CowshedSnapshotter)
		require.NoError(t, store.CollectGarbage(store.Context(ctx)))
		c.fails("docker says", "log", "docker:web")
		assert.Contains(t, c.ok("changes", "fork:try", "--whole"), "A /kept\n")
		assert.Equal(t, "fork:try\n", c.ok("ls", "--forks", "--names"))
		assert.Equal(t, "fork:try\n", c.ok("rm", "fork:try"))
	})
}

// TestKubernetesReferences: cri:ID is a container by its id or the beginning of that, and containerd:k8s.io/ID is the same.
func TestKubernetesReferences(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{withNRI()}, func(t *testing.T, ctx context.Context, h containerdHost) {
		k, store := newKubelet(t, ctx, h)
		ctx = store.Context(ctx)
		c := layerCommands{t, ctx, h.cowshed}
		pod := k.run(ctx, podNamed("web"), nil)
		web := pod.start(ctx, "web")
		pod.exec(ctx, web, "echo 1 >/kept")
		assert.Equal(t, "before\n", c.ok("snapshot", "cri:"+web[:13], "before"))
		pod.exec(ctx, web, "echo 2 >/new")
		assert.Contains(t, c.ok("changes", "cri:"+web, "cri:"+web+"@before"), "A /new\n")
		assert.Contains(t, c.ok("changes", "containerd:k8s.io/"+web), "A /kept\n")
		c.ok("limit", "cri:"+web[:13], "64M")
		requireSnapshotLimit(t, ctx, store, web, 64)
		c.fails("container none in the namespace k8s.io", "log", "cri:none")
		c.fails("cri:"+web+" is mounted on ", "rollback", "cri:"+web, "before")
		_, err := k.cri.StopContainer(ctx, &criapi.StopContainerRequest{ContainerId: web})
		require.NoError(t, err)
		c.okOnceStopped("rollback", "cri:"+web, "before")
		assert.NotContains(t, c.ok("changes", "cri:"+web), "/new")
		pod.remove(ctx)
		requireCleared(t, ctx, store)
	})
}

// TestHooksInContainer: commands around a snapshot are run in the container as its own process is. A failure or a process that takes too
// long aborts the snapshot, and nothing is left running. A container that is stopped needs no commands.
func TestHooksInContainer(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, func(t *testing.T, ctx context.Context, h containerdHost) {
		c := layerCommands{t, ctx, h.cowshed}
		img, err := h.store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
		require.NoError(t, err)
		web, err := h.store.Create(ctx, "web", img, idleScript)
		require.NoError(t, err)
		require.NoError(t, h.store.StartTask(ctx, web, filepath.Join(h.Dir, "web.out")))
		const ref = "containerd:e2e/web"
		snapshot := func(name string, flags ...string) []string {
			return append([]string{"snapshot", ref, name, "--in-container"}, flags...)
		}
		c.ok(snapshot("one", "--pre", "echo $COWSHED_HOOK $COWSHED_REFERENCE >/said", "--post", "echo $COWSHED_HOOK >/after")...)
		assert.Contains(t, c.ok("diff", ref+"@one", "--text"), "+pre "+ref+"\n")
		assert.NotContains(t, c.ok("changes", ref+"@one"), "/after")
		assert.Contains(t, c.ok("changes", ref, ref+"@one"), "A /after\n")
		c.fails("exit status 3", snapshot("two", "--pre", "exit 3")...)
		c.fails("deadline exceeded", snapshot("two", "--pre", "exec sleep 3600", "--hook-timeout", "1s")...)
		task, err := web.Task(ctx, nil)
		require.NoError(t, err)
		running, err := task.Pids(ctx)
		require.NoError(t, err)
		assert.LessOrEqual(t, len(running), 2, "the shell and its sleep")
		assert.NotContains(t, c.ok("snapshot", "ls", ref), "two")
		require.NoError(t, h.store.StopTask(ctx, web))
		c.ok(snapshot("two", "--pre", "exit 3")...)
		c.ok("snapshot", "rm", ref, "one", "two")
	})
}
