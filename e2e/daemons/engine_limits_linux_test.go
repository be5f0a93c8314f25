package daemons

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// A script that writes 6 MiB and deletes them again, and its output.
const (
	write6     = `dd if=/dev/urandom of=/big bs=1M count=6 conv=fsync 2>&1; rm /big; sync -f /`
	fits       = "6+0 records out"
	overLimit  = "Disk quota exceeded"
	sizeOfPods = "cowshed.dev/size"

	labelOfSize = "cowshed.size"
)

// atOnce is how many containers are made at the same time.
func atOnce() int {
	if testfs.Long() {
		return 100
	}
	return 12
}

// withNRI is Cowshed, with more lines in its configuration, and a containerd with CRI and NRI.
func withNRI(settings ...string) snapshotter {
	return snapshotter{harness.CowshedSnapshotter, func(t *testing.T, h *harness.Host) (harness.ContainerdOptions, *harness.Cowshed) {
		c := h.StartCowshed("containerd", append(settings, fmt.Sprintf("nri_socket = %q", h.NRISocket("containerd")))...)
		opts := c.Options()
		opts.CRI, opts.NRI, opts.NRITimeout = noCNI(t), true, testfs.Patience
		return opts, c
	}}
}

// withAnnotations is withNRI with the settings of TestKubernetesAnnotations.
func withAnnotations() snapshotter {
	return withNRI("nri = true", `default_limit = "128M"`, `max_limit = "64M"`)
}

// waitConnected waits until Cowshed is connected to an engine.
func waitConnected(t *testing.T, ctx context.Context, c *harness.Cowshed, engine string) {
	t.Helper()
	require.Eventually(t, func() bool {
		connected, err := c.EngineConnected(ctx, engine)
		return err == nil && connected
	}, patience, 20*time.Millisecond)
}

// requireDisconnected waits until Cowshed has noticed that it is not connected to containerd.
func requireDisconnected(t *testing.T, ctx context.Context, c *harness.Cowshed) {
	t.Helper()
	require.Eventually(t, func() bool {
		connected, err := c.EngineConnected(ctx, "nri")
		return err == nil && !connected
	}, patience, 20*time.Millisecond)
}

func requireOutcomes(t *testing.T, ctx context.Context, c *harness.Cowshed, engine, outcome string, want int) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		count, err := c.EngineLimits(ctx, engine, outcome)
		assert.NoError(t, err)
		assert.Equal(t, want, count, outcome)
	}, patience, 20*time.Millisecond)
}

// requireDelays waits until the metric has so many times without a limit.
func requireDelays(t *testing.T, ctx context.Context, c *harness.Cowshed, engine string, want int) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		delays, err := c.EngineDelays(ctx, engine)
		assert.NoError(t, err)
		assert.Equal(t, want, delays)
	}, patience, 20*time.Millisecond)
}

func podNamed(name string) *criapi.PodSandboxMetadata {
	return &criapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}
}

// TestKubernetesAnnotations: annotations of a pod limit the roots of its containers, and a bad one rejects the container.
// exec, a killed containerd and a killed daemon leave the limit, which cowshed limit changes.
func TestKubernetesAnnotations(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{withAnnotations()}, limitPods)
}

// limitPods is TestKubernetesAnnotations in one containerd.
func limitPods(t *testing.T, ctx context.Context, h containerdHost) {
	k, store := newKubelet(t, ctx, h)
	ctx = store.Context(ctx)
	waitConnected(t, ctx, h.cowshed, "nri")
	pod := k.run(ctx, podNamed("web"), map[string]string{sizeOfPods: "4M", "size.cowshed.dev/big": "12M"})
	web, big := pod.start(ctx, "web"), pod.start(ctx, "big")
	requireWrites := func(id, want string) {
		t.Helper()
		stdout, _ := pod.exec(ctx, id, write6)
		assert.Contains(t, stdout, want)
	}
	requireWrites(web, overLimit)
	requireWrites(web, overLimit)
	requireWrites(big, fits)
	requireOutcomes(t, ctx, h.cowshed, "nri", "set", 2)

	for size, want := range map[string]string{
		"much": `cowshed: annotation cowshed.dev/size: invalid argument: size "much": must be a number of bytes`,
		"65M":  `cowshed: annotation cowshed.dev/size: invalid argument: size "65M" is more than the 64MiB that the configuration`,
	} {
		bad := k.run(ctx, podNamed("bad"+size), map[string]string{sizeOfPods: size, "size.cowshed.dev/other": "16M"})
		_, err := bad.create(ctx, "bad")
		require.ErrorContains(t, err, want)
		_, err = bad.create(ctx, "other")
		require.NoError(t, err)
		bad.remove(ctx)
	}

	limit := func(size string) error {
		return h.cowshed.Command(ctx, "limit", "containerd:k8s.io/"+web, size, "--config", h.cowshed.Config)
	}
	require.NoError(t, limit("12M"))
	pod.exec(ctx, web, "dd if=/dev/urandom of=/held bs=1M count=6 conv=fsync; sync -f /")
	require.ErrorContains(t, limit("5M"), "a limit of 5MiB is less than the ")
	pod.exec(ctx, web, "rm /held; sync -f /")
	requireWrites(web, fits)

	reconnected := h.cowshed.Connecting("nri")
	h.containerd.Kill()
	requireDoctor(t, ctx, h.cowshed, "nri is not connected since")
	requireDisconnected(t, ctx, h.cowshed)
	h.containerd.Start()
	early := pod.start(ctx, "early") // perhaps before Cowshed is connected again
	require.NoError(t, reconnected(ctx))
	requireSnapshotLimit(t, ctx, store, early, 4)
	requireWrites(early, overLimit)
	requireWrites(web, fits)
	requireWrites(pod.start(ctx, "after"), overLimit)
	h.cowshed.Kill()
	h.cowshed.Start()
	requireConnected(t, ctx, store)
	waitConnected(t, ctx, h.cowshed, "nri")
	requireOutcomes(t, ctx, h.cowshed, "nri", "kept", 4)
	requireWrites(web, fits)
	requireWrites(big, fits)

	pod.remove(ctx)
	requireCleared(t, ctx, store)
}

// TestKubernetesAnnotationsAtOnce: of many containers made at once each gets its own limit, and those made while the plugin
// was off get it when it is on.
func TestKubernetesAnnotationsAtOnce(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{withNRI()}, func(t *testing.T, ctx context.Context, h containerdHost) {
		k, store := newKubelet(t, ctx, h)
		ctx = store.Context(ctx)
		before := k.run(ctx, podNamed("before"), map[string]string{sizeOfPods: "4M"})
		early := before.start(ctx, "early")
		stdout, _ := before.exec(ctx, early, write6)
		assert.Contains(t, stdout, fits)
		bad := k.run(ctx, podNamed("bad"), map[string]string{sizeOfPods: "much"})
		unlimited, err := bad.create(ctx, "unlimited")
		require.NoError(t, err)
		h.cowshed.Configure("nri = true")
		h.cowshed.Restart()
		requireConnected(t, ctx, store)
		requireOutcomes(t, ctx, h.cowshed, "nri", "set", 1)
		stdout, _ = before.exec(ctx, early, write6)
		assert.Contains(t, stdout, overLimit)
		requireDoctor(t, ctx, h.cowshed, "container default/bad/unlimited of nri is without the limit that it asks for")
		require.NoError(t, h.cowshed.Command(ctx, "limit", "containerd:k8s.io/"+unlimited, "16M", "--config", h.cowshed.Config))
		requireDoctor(t, ctx, h.cowshed, "nri is connected since")

		annotations := make(map[string]string)
		for n := range atOnce() {
			annotations[fmt.Sprintf("size.cowshed.dev/c%d", n)] = fmt.Sprintf("%dM", 16+n)
		}
		many := k.run(ctx, podNamed("many"), annotations)
		ids := make([]string, atOnce())
		var group errgroup.Group
		for n := range ids {
			group.Go(func() (err error) {
				ids[n], err = many.create(ctx, fmt.Sprintf("c%d", n))
				return err
			})
		}
		require.NoError(t, group.Wait())
		for n, id := range ids {
			requireSnapshotLimit(t, ctx, store, id, 16+n)
		}
		for _, p := range []*pod{many, before, bad} {
			p.remove(ctx)
		}
		requireCleared(t, ctx, store)
	})
}

// requireSnapshotLimit waits until a snapshot has a limit.
func requireSnapshotLimit(t *testing.T, ctx context.Context, store *harness.Store, key string, mib int) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		info, err := store.Snapshots().Stat(ctx, key)
		assert.NoError(t, err)
		assert.Equal(t, fmt.Sprint(mib<<20), info.Labels[snapshots.LabelSnapshotMaxSize])
	}, patience, 20*time.Millisecond)
}

// requireDoctor waits until cowshed doctor says something about limits, among other things.
func requireDoctor(t *testing.T, ctx context.Context, c *harness.Cowshed, want string) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		// The host of a test has no configurations of containerd and Docker in the places where doctor looks.
		err := c.Command(ctx, "doctor", "--containerd", "--config", c.Config)
		assert.ErrorContains(t, err, want)
	}, patience, 20*time.Millisecond)
}

// engineAPI is a line of the configuration.
func engineAPI(h *harness.Host) string {
	return fmt.Sprintf("docker_api = %q", "unix://"+h.EngineSocket())
}

// withDockerAPI is Cowshed that reads from the engine.
func withDockerAPI(settings ...string) snapshotter {
	return snapshotter{harness.CowshedSnapshotter, func(_ *testing.T, h *harness.Host) (harness.ContainerdOptions, *harness.Cowshed) {
		c := h.StartCowshed("containerd", append(settings, engineAPI(h))...)
		return c.Options(), c
	}}
}

func dockerWith(s snapshotter) []engine {
	return []engine{{"docker-cowshed", "", onSnapshotter(s)}}
}

// TestDockerStorageOpt: docker run --storage-opt size= limits a container. exec, a restart, a killed engine and a killed
// daemon leave the limit, which cowshed limit changes. A size that cannot be read is reported, and the container does not start.
func TestDockerStorageOpt(t *testing.T) {
	inEach(t, dockerWith(withDockerAPI()), limitByOption)
}

// limitByOption is TestDockerStorageOpt in one engine.
func limitByOption(t *testing.T, ctx context.Context, _ engine, e engineHost) {
	waitConnected(t, ctx, e.cowshed, "docker")
	create := func(name, size string) {
		t.Helper()
		require.NoError(t, e.CreateContainer(ctx, name, "cowshed/sample:1", idleScript, map[string]string{"size": size}))
	}
	start := func(name, size string) {
		t.Helper()
		create(name, size)
		require.NoError(t, e.StartContainer(ctx, name))
	}
	start("run", "8M")
	requireOutcomes(t, ctx, e.cowshed, "docker", "set", 1) // the engine does not wait for it
	result, err := e.Exec(ctx, "run", limitScript)
	require.NoError(t, err)
	assert.Contains(t, result.Output, overLimit)
	assert.Contains(t, result.Output, "and then: again\n")
	requireWrites := func(name, want string) {
		t.Helper()
		result, err := e.Exec(ctx, name, write6)
		require.NoError(t, err)
		assert.Contains(t, result.Output, want)
	}
	limit := func(name, size string) error {
		return e.cowshed.Command(ctx, "limit", "docker:"+name, size, "--config", e.cowshed.Config)
	}
	start("web", "4M")
	requireOutcomes(t, ctx, e.cowshed, "docker", "set", 2)
	requireWrites("web", overLimit)
	require.NoError(t, limit("web", "12M"))
	_, err = e.Exec(ctx, "web", "dd if=/dev/urandom of=/held bs=1M count=6 conv=fsync; sync -f /")
	require.NoError(t, err)
	require.ErrorContains(t, limit("web", "5M"), "a limit of 5MiB is less than the ")
	_, err = e.Exec(ctx, "web", "rm /held; sync -f /")
	require.NoError(t, err)
	_, err = e.ContainerRestart(ctx, "web", client.ContainerRestartOptions{Timeout: new(int)})
	require.NoError(t, err)
	requireWrites("web", fits)
	require.NoError(t, e.CreateLabelled(ctx, "label", "cowshed/sample:1", idleScript, map[string]string{labelOfSize: "4M"}))
	requireOutcomes(t, ctx, e.cowshed, "docker", "set", 3)
	require.NoError(t, e.StartContainer(ctx, "label"))
	requireWrites("label", overLimit)
	require.NoError(t, e.Remove(ctx, "label"))
	create("bad", "much")
	requireOutcomes(t, ctx, e.cowshed, "docker", "invalid", 1)
	requireDoctor(t, ctx, e.cowshed, "container bad of docker is without the limit that it asks for: --storage-opt size: invalid argument: size")
	require.ErrorContains(t, e.StartContainer(ctx, "bad"), `cowshed does not let container bad be started or mounted: --storage-opt size: invalid argument: size "much": must be`)
	require.NoError(t, limit("bad", "4M"))
	require.NoError(t, e.StartContainer(ctx, "bad"))
	requireWrites("bad", overLimit)

	e.Kill()
	e.Daemon.Start()
	start("after", "4M")
	requireOutcomes(t, ctx, e.cowshed, "docker", "set", 4)
	requireWrites("after", overLimit)
	e.cowshed.Kill()
	e.cowshed.Start()
	e.reconnect(ctx)
	requireOutcomes(t, ctx, e.cowshed, "docker", "kept", 4)
	require.NoError(t, e.StartContainer(ctx, "web"))
	requireWrites("web", fits)
	require.NoError(t, e.Remove(ctx, "run", "web", "bad", "after"))
}

// TestDockerStorageOptAtOnce: of many containers created at once each gets its own limit, and those created while
// docker_api was not set get it when it is.
func TestDockerStorageOptAtOnce(t *testing.T) {
	inEach(t, dockerWith(cowshed()), func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
		create := func(n int) error {
			return e.CreateContainer(ctx, fmt.Sprintf("c%d", n), "cowshed/sample:1", idleScript, map[string]string{"size": fmt.Sprintf("%dM", 16+n)})
		}
		require.NoError(t, create(0))
		e.cowshed.Configure(engineAPI(e.host))
		e.cowshed.Restart()
		e.reconnect(ctx)
		requireOutcomes(t, ctx, e.cowshed, "docker", "set", 1)
		var group errgroup.Group
		for n := range atOnce() {
			group.Go(func() error { return create(n + 1) })
		}
		require.NoError(t, group.Wait())
		requireOutcomes(t, ctx, e.cowshed, "docker", "set", atOnce()+1)
		requireDelays(t, ctx, e.cowshed, "docker", atOnce()+1)
		store := e.containerd.Store("moby", harness.CowshedSnapshotter)
		for n := range atOnce() + 1 {
			c, err := e.ContainerInspect(ctx, fmt.Sprintf("c%d", n), client.ContainerInspectOptions{})
			require.NoError(t, err)
			requireSnapshotLimit(t, store.Context(ctx), store, c.Container.ID, 16+n)
		}
		require.NoError(t, e.RemoveAllContainers(ctx))
	})
}

// engineNRI is a line of the configuration.
func engineNRI(h *harness.Host) string { return fmt.Sprintf("docker_nri = %q", h.EngineNRISocket()) }

// withNRIOn is an engine with its NRI on Cowshed, which does not use that yet.
func withNRIOn(settings ...string) []engine {
	return []engine{{"docker-nri", "", onSnapshotterWith(cowshed(settings...), harness.EngineOptions{NRI: true})}}
}

// TestDockerNRI: with the NRI of the engine, the label cowshed.size limits a container from the start, and a bad one rejects it.
// A container that was created while the daemon was no plugin, or the engine was away, gets its limit afterwards.
func TestDockerNRI(t *testing.T) {
	inEach(t, withNRIOn(`default_limit = "128M"`, `max_limit = "64M"`), func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
		store := e.containerd.Store("moby", harness.CowshedSnapshotter)
		ctx = store.Context(ctx)
		create := func(name, size string) error {
			return e.CreateLabelled(ctx, name, "cowshed/sample:1", idleScript, map[string]string{labelOfSize: size})
		}
		require.NoError(t, create("before", "4M"))
		e.cowshed.Configure(engineNRI(e.host))
		e.cowshed.Restart()
		e.reconnect(ctx)
		requireOutcomes(t, ctx, e.cowshed, "docker-nri", "set", 1)
		requireDelays(t, ctx, e.cowshed, "docker-nri", 1) // from the creation of the snapshot: the engine does not tell that of the container
		again := e.cowshed.Connecting("docker-nri")
		requireLimit := func(name string, mib int) {
			t.Helper()
			c, err := e.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
			require.NoError(t, err)
			info, err := store.Snapshots().Stat(ctx, c.Container.ID)
			require.NoError(t, err)
			if info.Labels[snapshots.LabelSnapshotMaxSize] == fmt.Sprint(mib<<20) {
				return
			}
			waiting, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			require.NoError(t, again(waiting), "%s has no limit at once, although the engine has not given up on Cowshed", name)
			t.Logf("the engine has given up on Cowshed, as it does after two seconds, and %s gets its limit later", name)
			requireSnapshotLimit(t, ctx, store, c.Container.ID, mib)
		}
		requireWrites := func(name, want string) {
			t.Helper()
			require.NoError(t, e.StartContainer(ctx, name))
			result, err := e.Exec(ctx, name, write6)
			require.NoError(t, err)
			assert.Contains(t, result.Output, want)
		}

		require.NoError(t, create("web", "4M"))
		requireLimit("web", 4)
		requireWrites("web", overLimit)
		require.NoError(t, create("big", "12M"))
		requireWrites("big", fits)
		var group errgroup.Group
		for n := range atOnce() {
			group.Go(func() error { return create(fmt.Sprintf("c%d", n), fmt.Sprintf("%dM", 16+n%32)) })
		}
		require.NoError(t, group.Wait())
		for n := range atOnce() {
			requireLimit(fmt.Sprintf("c%d", n), 16+n%32)
		}
		requireOutcomes(t, ctx, e.cowshed, "docker-nri", "set", 3+atOnce())

		for size, want := range map[string]string{
			"much": `cowshed: label cowshed.size: invalid argument: size "much": must be a number of bytes`,
			"65M":  `cowshed: label cowshed.size: invalid argument: size "65M" is more than the 64MiB that the configuration`,
		} {
			require.ErrorContains(t, create("bad", size), want)
			_, err := e.ContainerInspect(ctx, "bad", client.ContainerInspectOptions{})
			require.Error(t, err, "nothing is left of it")
		}
		requireOutcomes(t, ctx, e.cowshed, "docker-nri", "invalid", 2)

		reconnected := e.cowshed.Connecting("docker-nri")
		e.Kill()
		e.Daemon.Start()
		require.NoError(t, create("early", "4M")) // perhaps before Cowshed is connected again
		require.NoError(t, reconnected(ctx))
		c, err := e.ContainerInspect(ctx, "early", client.ContainerInspectOptions{})
		require.NoError(t, err)
		requireSnapshotLimit(t, ctx, store, c.Container.ID, 4)
		requireWrites("early", overLimit)

		e.cowshed.Kill()
		e.cowshed.Start()
		e.reconnect(ctx)
		requireOutcomes(t, ctx, e.cowshed, "docker-nri", "kept", 4+atOnce())
		require.NoError(t, e.RemoveAllContainers(ctx))
	})
}
