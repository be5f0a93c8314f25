package daemons

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// createAgain makes a container of idleImage, again and again as a kubelet does until it is told that there is one.
func (p *pod) createAgain(ctx context.Context, name string) error {
	for attempt := uint32(0); ; attempt++ {
		_, err := p.k.cri.CreateContainer(ctx, &criapi.CreateContainerRequest{
			PodSandboxId: p.id, SandboxConfig: p.config,
			Config: &criapi.ContainerConfig{
				Metadata: &criapi.ContainerMetadata{Name: name, Attempt: attempt},
				Image:    &criapi.ImageSpec{Image: idleName},
				Linux:    &criapi.LinuxContainerConfig{SecurityContext: &criapi.LinuxContainerSecurityContext{NamespaceOptions: hostNetwork()}},
			},
		})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// awayTime is how long a daemon is away that was killed.
const awayTime = 500 * time.Millisecond

// TestKubernetesLimitsKill: containerd or Cowshed is killed while many containers are created at once. When both are back, each
// container has its own limit: also those that containerd had begun to create. doctor and a metric show the time between.
func TestKubernetesLimitsKill(t *testing.T) {
	for victim, kill := range map[string]struct {
		daemon func(containerdHost) *harness.Daemon
		shown  func(t *testing.T, ctx context.Context, c *harness.Cowshed)
	}{
		"containerd": {
			func(h containerdHost) *harness.Daemon { return h.containerd.Daemon },
			func(t *testing.T, ctx context.Context, c *harness.Cowshed) {
				t.Helper()
				requireDisconnected(t, ctx, c)
				requireDoctor(t, ctx, c, "nri is not connected since")
			},
		},
		"cowshed": {
			func(h containerdHost) *harness.Daemon { return h.cowshed.Daemon },
			func(t *testing.T, ctx context.Context, c *harness.Cowshed) {
				t.Helper()
				_, err := c.EngineConnected(ctx, "nri")
				require.Error(t, err, "there is no metric")
				requireDoctor(t, ctx, c, "nri is not connected, since the daemon does not answer")
			},
		},
	} {
		t.Run(victim, func(t *testing.T) {
			inEachSnapshotter(t, []snapshotter{withNRI("nri = true")}, func(t *testing.T, ctx context.Context, h containerdHost) {
				k, store := newKubelet(t, ctx, h)
				ctx = store.Context(ctx)
				waitConnected(t, ctx, h.cowshed, "nri")
				annotations := make(map[string]string)
				for n := range atOnce() {
					annotations[fmt.Sprintf("size.cowshed.dev/c%d", n)] = fmt.Sprintf("%dM", 16+n)
				}
				many := k.run(ctx, podNamed("many"), annotations)
				var group errgroup.Group
				for n := range atOnce() {
					group.Go(func() error { return many.createAgain(ctx, fmt.Sprintf("c%d", n)) })
				}
				daemon := kill.daemon(h)
				require.Eventually(t, func() bool {
					set, err := h.cowshed.EngineLimits(ctx, "nri", "set")
					return err == nil && set >= atOnce()/3
				}, patience, time.Millisecond)
				daemon.Kill()
				time.Sleep(awayTime)
				kill.shown(t, ctx, h.cowshed)
				daemon.Start()
				requireConnected(t, ctx, store)
				require.NoError(t, group.Wait())
				waitConnected(t, ctx, h.cowshed, "nri")

				requireOwnLimits(t, ctx, h, many)
				set, err := h.cowshed.EngineLimits(ctx, "nri", "set")
				require.NoError(t, err)
				kept, err := h.cowshed.EngineLimits(ctx, "nri", "kept")
				require.NoError(t, err)
				t.Logf("of the daemon that runs, %d limits are new and %d were there", set, kept)
				many.remove(ctx)
				require.NoError(t, store.RemoveLeases(ctx)) // of creations that were cut off
				requireCleared(t, ctx, store)
			})
		})
	}
}

// holding is a plugin of NRI that holds up the creation of a container.
type holding struct {
	synchronized, asked chan struct{}
	release             context.Context //nolint:containedctx // done: it holds up no longer
}

// Synchronize is the first request of containerd, which creates no container before it has the answer.
func (h *holding) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	close(h.synchronized)
	return nil, nil
}

func (h *holding) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	close(h.asked)
	<-h.release.Done()
	return nil, nil, nil
}

// holdUp connects a plugin that containerd asks before Cowshed, and that answers when it is released or ctx ends.
func holdUp(t *testing.T, ctx context.Context, socket string) (h *holding, release func()) {
	t.Helper()
	released, release := context.WithCancel(ctx)
	t.Cleanup(release)
	h = &holding{make(chan struct{}), make(chan struct{}), released}
	for {
		plugin, err := stub.New(h, stub.WithSocketPath(socket), stub.WithPluginName("holding"), stub.WithPluginIdx("00"))
		require.NoError(t, err)
		if err = plugin.Start(ctx); err == nil {
			t.Cleanup(plugin.Stop)
			break
		}
		require.NoError(t, ctx.Err(), "connect a plugin: %v", err) // it has five seconds, and is tried again
	}
	select {
	case <-h.synchronized:
	case <-ctx.Done():
		require.NoError(t, ctx.Err(), "containerd has not synchronized the plugin")
	}
	return h, release
}

// TestKubernetesLimitBetween: Cowshed is killed when a container has its snapshot, and before NRI asks for its limit. containerd
// finishes the container. It has its limit as soon as Cowshed is back, and a metric has the time without it.
func TestKubernetesLimitBetween(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{withNRI("nri = true")}, func(t *testing.T, ctx context.Context, h containerdHost) {
		k, store := newKubelet(t, ctx, h)
		ctx = store.Context(ctx)
		waitConnected(t, ctx, h.cowshed, "nri")
		web := k.run(ctx, podNamed("web"), map[string]string{sizeOfPods: "4M"})
		hold, release := holdUp(t, ctx, h.NRISocket("containerd"))
		var id string
		var group errgroup.Group
		group.Go(func() (err error) {
			id, err = web.create(ctx, "web")
			return err
		})
		select {
		case <-hold.asked:
			h.cowshed.Kill()
		case <-ctx.Done():
		}
		release()
		require.NoError(t, group.Wait())

		h.cowshed.Start()
		requireOutcomes(t, ctx, h.cowshed, "nri", "set", 1)
		requireDelays(t, ctx, h.cowshed, "nri", 1)
		requireConnected(t, ctx, store)
		_, err := k.cri.StartContainer(ctx, &criapi.StartContainerRequest{ContainerId: id})
		require.NoError(t, err)
		stdout, _ := web.exec(ctx, id, write6)
		assert.Contains(t, stdout, overLimit)
		web.remove(ctx)
		requireCleared(t, ctx, store)
	})
}

// requireOwnLimits checks that each container of a pod, cN, gets its own limit of 16+N MiB soon, and that the kernel enforces it.
func requireOwnLimits(t *testing.T, ctx context.Context, h containerdHost, p *pod) {
	t.Helper()
	listed, err := p.k.cri.ListContainers(ctx, &criapi.ListContainersRequest{Filter: &criapi.ContainerFilter{PodSandboxId: p.id}})
	require.NoError(t, err)
	assert.GreaterOrEqual(t, len(listed.GetContainers()), atOnce())
	want := make(map[string]uint64)
	for _, c := range listed.GetContainers() {
		var n uint64
		_, err := fmt.Sscanf(c.GetMetadata().GetName(), "c%d", &n)
		require.NoError(t, err)
		want[c.GetId()] = (16 + n) << 20
	}
	requireLimits(t, ctx, h.cowshed, h.fs, want)
}

// requireLimits waits until the kernel enforces the limits of containers, by id.
func requireLimits(t *testing.T, ctx context.Context, c *harness.Cowshed, fs filesystem, want map[string]uint64) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		out, err := c.Output(ctx, "top", "--json", "--interval", "0", "--config", c.Config)
		require.NoError(t, err)
		var rows []struct {
			ID    string
			Limit uint64
		}
		require.NoError(t, json.Unmarshal([]byte(out), &rows), out)
		limits := make(map[string]uint64)
		for _, r := range rows {
			if _, ok := want[r.ID]; ok {
				limits[r.ID] = r.Limit
			}
		}
		assert.Equal(t, want, limits)
	}, fs.soon, 200*time.Millisecond)
}

// createLimited makes a container cN with a limit of 16+N MiB, again and again as a client does whose engine is away.
func (e engineHost) createLimited(ctx context.Context, n int) error {
	for {
		err := e.CreateContainer(ctx, fmt.Sprintf("c%d", n), "cowshed/sample:1", idleScript, map[string]string{"size": fmt.Sprintf("%dM", 16+n)})
		if err == nil || errdefs.IsConflict(err) { // the answer to an earlier attempt was lost
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// requireLimitsOf checks that each of so many containers of createLimited has its own limit.
func (e engineHost) requireLimitsOf(t *testing.T, ctx context.Context, containers int) {
	t.Helper()
	want := make(map[string]uint64)
	for n := range containers {
		c, err := e.ContainerInspect(ctx, fmt.Sprintf("c%d", n), client.ContainerInspectOptions{})
		require.NoError(t, err)
		want[c.Container.ID] = uint64(16+n) << 20
	}
	requireLimits(t, ctx, e.cowshed, e.fs, want)
}

// engineLink is a symbolic link to the engine's socket, by which Cowshed alone reaches it.
func engineLink(h *harness.Host) string { return filepath.Join(h.Dir, "engine.sock") }

// throughLink is Cowshed that reads from the engine through engineLink.
func throughLink() snapshotter {
	return snapshotter{harness.CowshedSnapshotter, func(t *testing.T, h *harness.Host) (harness.ContainerdOptions, *harness.Cowshed) {
		require.NoError(t, os.Symlink(h.EngineSocket(), engineLink(h)))
		c := h.StartCowshed("containerd", fmt.Sprintf("docker_api = %q", "unix://"+engineLink(h)))
		return c.Options(), c
	}}
}

// TestDockerLimitsKill: Docker Engine or Cowshed is killed while many containers are created at once. Afterwards each container has
// its own limit: also those that were created while Cowshed did not reach the engine. doctor and a metric show that time.
// It is long.
func TestDockerLimitsKill(t *testing.T) {
	if !testfs.Long() {
		return
	}
	for victim, kill := range map[string]func(t *testing.T, ctx context.Context, e engineHost, creating *errgroup.Group) (containers int){
		"engine": func(t *testing.T, ctx context.Context, e engineHost, creating *errgroup.Group) int {
			e.Kill()
			requireDoctor(t, ctx, e.cowshed, "docker is not connected since")
			e.Daemon.Start()
			require.NoError(t, creating.Wait())
			return atOnce()
		},
		"cowshed": func(t *testing.T, ctx context.Context, e engineHost, creating *errgroup.Group) int {
			require.NoError(t, os.Remove(engineLink(e.host)))
			e.cowshed.Kill()
			requireDoctor(t, ctx, e.cowshed, "docker is not connected, since the daemon does not answer")
			e.cowshed.Start()
			e.reconnect(ctx)
			require.NoError(t, creating.Wait())
			require.NoError(t, e.createLimited(ctx, atOnce()))
			requireDoctor(t, ctx, e.cowshed, "docker is not connected since")
			time.Sleep(awayTime)
			require.NoError(t, os.Symlink(e.Socket, engineLink(e.host)))
			require.EventuallyWithT(t, func(t *assert.CollectT) {
				slow, err := e.cowshed.EngineDelaysAbove(ctx, "docker", "0.25")
				require.NoError(t, err)
				assert.Positive(t, slow)
			}, patience, 20*time.Millisecond)
			return atOnce() + 1
		},
	} {
		t.Run(victim, func(t *testing.T) {
			inEach(t, dockerWith(throughLink()), func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
				waitConnected(t, ctx, e.cowshed, "docker")
				var creating errgroup.Group
				for n := range atOnce() {
					creating.Go(func() error { return e.createLimited(ctx, n) })
				}
				require.Eventually(t, func() bool {
					set, err := e.cowshed.EngineLimits(ctx, "docker", "set")
					return err == nil && set >= atOnce()/3
				}, patience, time.Millisecond)
				containers := kill(t, ctx, e, &creating)
				waitConnected(t, ctx, e.cowshed, "docker")
				e.requireLimitsOf(t, ctx, containers)
				set, err := e.cowshed.EngineLimits(ctx, "docker", "set")
				require.NoError(t, err)
				requireDelays(t, ctx, e.cowshed, "docker", set)

				require.NoError(t, e.RemoveAllContainers(ctx))
				require.NoError(t, e.Prune(ctx))
				e.Stop()
				e.Unmount()
				store := e.containerd.Store("moby", e.driver)
				require.NoError(t, store.RemoveLeases(store.Context(ctx))) // of creations that were cut off
				e.Daemon.Start()
			})
		})
	}
}
