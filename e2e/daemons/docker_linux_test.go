package daemons

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// engine is a Docker Engine on the storage under test.
type engine struct {
	name string
	// size is a limit of containers that is less than limitScript writes, or empty where there are none.
	size string
	// start runs the engine and the daemons that it needs.
	start func(t *testing.T, h *harness.Host, fs filesystem) engineHost
}

// engineHost is a host with an engine.
type engineHost struct {
	*harness.Engine
	host *harness.Host
	fs   filesystem
	// driver is docker info's name for the storage.
	driver string
	// containerd is nil where the engine runs its own, and cowshed where the storage is not its.
	containerd *harness.Containerd
	cowshed    *harness.Cowshed
	// service is the service in Cowshed's metrics that works for the engine.
	service string
	// left lists stored things when nothing should be stored.
	left func(ctx context.Context, c require.TestingT) []string
	// reconnect waits, after Cowshed was started again, until the engine reaches it.
	reconnect func(ctx context.Context)
}

// onCowshed are the engines on Cowshed: that of today, with the containerd image store, and Debian's, with a graph
// driver plugin.
func onCowshed() []engine {
	return []engine{
		{"docker-cowshed", "", onSnapshotter(cowshed())},
		{"debian-cowshed", "32m", onPlugin()},
	}
}

// engines are those on Cowshed, and Debian's on its own btrfs driver. containerd's btrfs snapshotter is not among
// them: BuildKit mounts again the mounts of a snapshot from before its commit, and that snapshotter then has another
// subvolume in their place.
func engines() []engine {
	return append(onCowshed(), engine{"debian-btrfs", "32m", onGraphDriver("btrfs")})
}

// onSnapshotter starts the engine of today on a containerd with the snapshotter.
func onSnapshotter(s snapshotter) func(*testing.T, *harness.Host, filesystem) engineHost {
	return onSnapshotterWith(s, harness.EngineOptions{})
}

// onSnapshotterWith is onSnapshotter with more options of the engine.
func onSnapshotterWith(s snapshotter, engine harness.EngineOptions) func(*testing.T, *harness.Host, filesystem) engineHost {
	return func(t *testing.T, h *harness.Host, fs filesystem) engineHost {
		opts, cowshed := s.start(t, h)
		containerd := h.StartContainerd("containerd", opts)
		store := containerd.Store("moby", s.name)
		engine.Driver, engine.Containerd = s.name, containerd
		return engineHost{
			Engine: h.StartDocker(engine),
			host:   h, driver: s.name, containerd: containerd, cowshed: cowshed, service: "snapshots",
			left: func(ctx context.Context, c require.TestingT) []string {
				ctx = store.Context(ctx)
				require.NoError(c, store.Reach(ctx))
				require.NoError(c, store.CollectGarbage(ctx))
				keys, err := store.Keys(ctx)
				require.NoError(c, err)
				return append(keys, fs.volumes(c, h)...)
			},
			reconnect: func(ctx context.Context) { requireConnected(t, store.Context(ctx), store) },
		}
	}
}

// onPlugin starts Debian's engine on Cowshed. settings are more lines of Cowshed's configuration.
func onPlugin(settings ...string) func(*testing.T, *harness.Host, filesystem) engineHost {
	return func(t *testing.T, h *harness.Host, fs filesystem) engineHost {
		c := h.StartCowshed("containerd", settings...)
		e := h.StartDebianDocker(harness.EngineOptions{Driver: c.Plugin})
		return engineHost{
			Engine: e, host: h, driver: c.Plugin, cowshed: c, service: "docker",
			left:      func(_ context.Context, c require.TestingT) []string { return fs.volumes(c, h) },
			reconnect: func(context.Context) {},
		}
	}
}

// onGraphDriver starts Debian's engine on a driver of its own.
func onGraphDriver(driver string) func(*testing.T, *harness.Host, filesystem) engineHost {
	return func(t *testing.T, h *harness.Host, fs filesystem) engineHost {
		return engineHost{
			Engine: h.StartDebianDocker(harness.EngineOptions{Driver: driver}),
			host:   h, driver: driver,
			left: func(_ context.Context, c require.TestingT) []string { return fs.volumes(c, h) },
		}
	}
}

// engineTest is a test with an engine that has the sample image.
type engineTest func(t *testing.T, ctx context.Context, s engine, e engineHost)

// inEach runs the test with each engine, on btrfs. When it is done, nothing stays of its images and containers.
func inEach(t *testing.T, list []engine, test engineTest) {
	t.Helper()
	inEachOn(t, onBtrfs(), list, test)
}

// inEachOn is inEach on another filesystem.
func inEachOn(t *testing.T, fs filesystem, list []engine, test engineTest) {
	t.Helper()
	for _, s := range list {
		t.Run(s.name, func(t *testing.T) {
			h := harness.NewHost(t, fs.fresh(t))
			fs.prepare(t, h)
			e := s.start(t, h, fs)
			e.fs = fs
			ctx := contextOf(t, fs.timeout)
			require.NoError(t, e.Load(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1")))

			test(t, ctx, s, e)

			ctx = contextOf(t, fs.timeout)
			requireImage(t, ctx, e)
			requirePruned(t, ctx, e)
			if e.cowshed != nil {
				fs.requireTidy(t, h, e.cowshed)
			}
		})
	}
}

// requireImage checks that the sample image, if the test has left it, still has all that it had.
func requireImage(t *testing.T, ctx context.Context, e engineHost) {
	t.Helper()
	images, err := e.Images(ctx)
	require.NoError(t, err)
	if !slices.Contains(images, "cowshed/sample:1") {
		return
	}
	result, err := e.RunContainer(ctx, "intact", "cowshed/sample:1", harness.IntactScript, nil)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "intact\n"}, result)
}

// requirePruned removes all that the engine has.
func requirePruned(t *testing.T, ctx context.Context, e engineHost) {
	t.Helper()
	require.NoError(t, e.RemoveAllContainers(ctx))
	// BuildKit lets go of its snapshots some time after it has answered; until then they are not pruned.
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, e.Prune(ctx))
		images, err := e.Images(ctx)
		require.NoError(c, err)
		assert.Empty(c, images)
		assert.Empty(c, e.left(ctx, c))
	}, e.fs.soon, 100*time.Millisecond)
}

// TestDocker takes an image through the life it has in an engine.
func TestDocker(t *testing.T) {
	inEach(t, engines(), liveInEngine)
}

// liveInEngine is TestDocker in one engine.
func liveInEngine(t *testing.T, ctx context.Context, _ engine, e engineHost) {
	info, err := e.Info(ctx, client.InfoOptions{})
	require.NoError(t, err)
	assert.Equal(t, e.driver, info.Info.Driver)

	result, err := e.RunContainer(ctx, "one", "cowshed/sample:1", harness.ChangeScript, nil)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "changed\n"}, result)
	changes, err := e.Diff(ctx, "one")
	require.NoError(t, err)
	assert.Equal(t, changedPaths, changes)

	require.NoError(t, e.Commit(ctx, "one", "cowshed/sample:2"))
	result, err = e.RunContainer(ctx, "two", "cowshed/sample:2", harness.CheckScript, nil)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "as committed\n"}, result)

	require.NoError(t, e.CreateContainer(ctx, "three", "cowshed/sample:2", idleScript, nil))
	require.NoError(t, e.StartContainer(ctx, "three"))
	result, err = e.Exec(ctx, "three", "echo exec >/data/exec && cat /data/exec")
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "exec\n"}, result)
	changes, err = e.Diff(ctx, "three")
	require.NoError(t, err)
	assert.Equal(t, []string{"C /data", "A /data/exec"}, changes)

	// A saved image is loaded again after all of it is gone.
	saved := filepath.Join(e.host.Dir, "saved.tar")
	require.NoError(t, e.Save(ctx, "cowshed/sample:2", saved))
	requirePruned(t, ctx, e)
	require.NoError(t, e.Load(ctx, saved))
	result, err = e.RunContainer(ctx, "again", "cowshed/sample:2", harness.CheckScript, nil)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
}

// buildContext is a context whose image has the number n and the changes of harness.ChangeScript. No layer is the same as with
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
		{Path: "change.sh", Data: fmt.Sprintf("%s\n# %d\n", harness.ChangeScript, n)},
	}
}

// TestDockerBuild builds images with each builder, two at the same time, while containers run.
func TestDockerBuild(t *testing.T) {
	inEach(t, onCowshed(), buildAtOnce)
}

// buildAtOnce is TestDockerBuild in one engine.
func buildAtOnce(t *testing.T, ctx context.Context, _ engine, e engineHost) {
	const runs = 10
	var g errgroup.Group
	for n, builder := range []build.BuilderVersion{build.BuilderV1, build.BuilderBuildKit} {
		g.Go(func() error { return buildAndRun(ctx, e, n, builder) })
	}
	for n := range runs {
		g.Go(func() error {
			name := fmt.Sprintf("run%d", n)
			result, err := e.RunContainer(ctx, name, "cowshed/sample:1", harness.ChangeScript, nil)
			if err != nil || result.Output != "changed\n" {
				return fmt.Errorf("%s: %v: %w", name, result, err)
			}
			return e.Remove(ctx, name)
		})
	}
	require.NoError(t, g.Wait())
}

// buildAndRun builds the image of buildContext(n) and checks it in a container.
func buildAndRun(ctx context.Context, e engineHost, n int, builder build.BuilderVersion) error {
	image := fmt.Sprintf("cowshed/built:%d", n)
	if err := e.Build(ctx, image, buildContext(n), builder); err != nil {
		return err
	}
	result, err := e.RunContainer(ctx, fmt.Sprintf("built%d", n), image, "cat /number; "+harness.CheckScript, nil)
	if want := fmt.Sprintf("%d\nas committed\n", n); err != nil || result.Output != want {
		return fmt.Errorf("%s: %v: %w", image, result, err)
	}
	return nil
}

// TestDockerRestart stops and kills each daemon, and all together, while one container exists and another one runs.
func TestDockerRestart(t *testing.T) {
	inEach(t, onCowshed(), restartDaemons)
}

// restartDaemons is TestDockerRestart in one engine.
func restartDaemons(t *testing.T, ctx context.Context, _ engine, e engineHost) {
	result, err := e.RunContainer(ctx, "one", "cowshed/sample:1", harness.ChangeScript, nil)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "changed\n"}, result)
	require.NoError(t, e.CreateContainer(ctx, "running", "cowshed/sample:1", idleScript, nil))
	for i, restart := range engineRestarts(t, ctx, e) {
		require.NoError(t, e.StartContainer(ctx, "running"))
		restart()
		e.reconnect(ctx)
		// An engine that was restarted has stopped its containers.
		require.NoError(t, e.StartContainer(ctx, "running"))
		result, err = e.Exec(ctx, "running", fmt.Sprintf("cat /data/change && echo %d >/number", i))
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "first\n"}, result)
		changes, err := e.Diff(ctx, "one")
		require.NoError(t, err)
		assert.Equal(t, changedPaths, changes)
		image := fmt.Sprintf("cowshed/restarted:%d", i)
		require.NoError(t, e.Commit(ctx, "one", image))
		result, err = e.RunContainer(ctx, fmt.Sprintf("check%d", i), image, harness.CheckScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
	}
}

// engineRestarts are the ways in which the daemons are started again.
func engineRestarts(t *testing.T, ctx context.Context, e engineHost) []func() {
	t.Helper()
	restarts := []func(){
		e.Restart,
		e.cowshed.Restart,
		func() { e.cowshed.Kill(); e.cowshed.Start() },
		func() { e.Kill(); e.cowshed.Kill(); e.cowshed.Start(); e.Daemon.Start() },
		func() { e.Stop(); e.cowshed.Restart(); e.Daemon.Start() },
	}
	if e.containerd != nil {
		restarts = append(restarts, func() {
			e.containerd.Restart()
			require.NoError(t, e.WaitEvents(ctx, e.containerd))
		})
	}
	return restarts
}

// TestDockerLimit writes to the limit of a container, which then can delete and write again.
func TestDockerLimit(t *testing.T) {
	// Nothing limits a container in the containerd image store.
	limited := slices.DeleteFunc(engines(), func(s engine) bool { return s.size == "" })
	inEach(t, limited, writeToLimit)
}

// writeToLimit is TestDockerLimit in one engine.
func writeToLimit(t *testing.T, ctx context.Context, s engine, e engineHost) {
	result, err := e.RunContainer(ctx, "one", "cowshed/sample:1", limitScript, map[string]string{"size": s.size})
	require.NoError(t, err)
	assert.Contains(t, result.Output, "Disk quota exceeded")
	assert.Contains(t, result.Output, "and then: again\n")
}

// TestDockerManyFiles asks for three changes of an image of 50,000 files, and commits them, for which Cowshed walks
// nothing. The engine of today is only told to commit: for docker diff, it mounts both trees and walks them itself.
func TestDockerManyFiles(t *testing.T) {
	inEach(t, onCowshed(), changeFewOfMany)
}

// changeFewOfMany is TestDockerManyFiles in one engine.
func changeFewOfMany(t *testing.T, ctx context.Context, _ engine, e engineHost) {
	require.NoError(t, e.Load(ctx, e.host.SaveImage(manyImage(t, e.host), "cowshed/many:1")))
	result, err := e.RunContainer(ctx, "one", "cowshed/many:1", fewChangesScript, nil)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "changed\n"}, result)

	if e.containerd == nil {
		begun, native := time.Now(), comparisons(t, ctx, e)
		changes, err := e.Diff(ctx, "one")
		require.NoError(t, err)
		t.Logf("diff took %s", time.Since(begun))
		assert.Equal(t, fewChangedPaths, changes)
		assert.Greater(t, comparisons(t, ctx, e), native)
	}
	begun, native := time.Now(), comparisons(t, ctx, e)
	require.NoError(t, e.Commit(ctx, "one", "cowshed/many:2"))
	t.Logf("commit took %s", time.Since(begun))
	assert.Greater(t, comparisons(t, ctx, e), native, "native comparisons, at the end of the commit")
}

// comparisons is how often Cowshed has compared for the engine without a walk. It never walks.
func comparisons(t *testing.T, ctx context.Context, e engineHost) int {
	t.Helper()
	native, walked, err := e.cowshed.Comparisons(ctx, e.service)
	require.NoError(t, err)
	assert.Empty(t, walked, "walks by reason, and %d native comparisons", native)
	return native
}

// observed is an image and a container as users see them, whatever the storage driver.
type observed struct {
	Layers, History []string
	ImageSize       int64
	SizeRw          int64
	SizeRootFs      int64
	Changes         []string
}

// told is a storage driver's description of itself, of an image's topmost layer and of a container.
type told struct {
	Status, Image, Container map[string]string
}

// TestDockerObserved compares the users' view of Debian's engine on Cowshed with that on its own driver.
func TestDockerObserved(t *testing.T) {
	ours, theirs := observeBoth(t, onBtrfs(), "btrfs")
	// The engine's own driver tells which library it was built with, and nothing of a layer, so users cannot miss anything.
	assert.ElementsMatch(t, []string{"Build Version", "Library Version"}, slices.Collect(maps.Keys(theirs.Status)))
	assert.Empty(t, theirs.Image)
	assert.Empty(t, theirs.Container)

	assert.ElementsMatch(t, []string{
		"Backing Filesystem", "Filesystem UUID", "Device", "Space Total", "Space Used", "Space Available", "Quota Mode",
		"Quota Scope", "Root Style", "Native Diff",
	}, slices.Collect(maps.Keys(ours.Status)))
	assert.NotContains(t, slices.Collect(maps.Values(ours.Status)), "")
	assert.Equal(t, "btrfs", ours.Status["Backing Filesystem"])
	layer := []string{"Path", "SubvolumeID", "UUID", "Parent", "Sealed", "Usage"}
	assert.ElementsMatch(t, layer, slices.Collect(maps.Keys(ours.Image)))
	assert.Equal(t, "true", ours.Image["Sealed"])
	assert.ElementsMatch(t, append(layer, "Limit", "LimitScope"), slices.Collect(maps.Keys(ours.Container)))
	assert.Equal(t, "false", ours.Container["Sealed"])
	assert.Equal(t, strconv.Itoa(64<<20), ours.Container["Limit"])
	assert.Equal(t, ours.Container["Parent"], filepath.Base(ours.Container["Path"])+"-init")
}

// observeBoth returns how Cowshed and the engine's own driver describe themselves. All else must look the same.
func observeBoth(t *testing.T, fs filesystem, driver string) (ours, theirs told) {
	t.Helper()
	var seen []observed
	var drivers []told
	inEachOn(t, fs, []engine{{"cowshed", "", onPlugin()}, {driver, "", onGraphDriver(driver)}}, func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
		_, err := e.RunContainer(ctx, "one", "cowshed/sample:1", harness.ChangeScript, map[string]string{"size": "64m"})
		require.NoError(t, err)
		o, d := observe(t, ctx, e, "cowshed/sample:1", "one")
		t.Logf("%q", d)
		seen, drivers = append(seen, o), append(drivers, d)
	})
	require.Len(t, seen, 2)

	// harness.ChangeScript makes one symbolic link, to file. The engine's own driver counts the length of its target.
	expected := seen[1]
	expected.SizeRw -= int64(len("file"))
	expected.SizeRootFs -= int64(len("file"))
	assert.Equal(t, expected, seen[0])
	return drivers[0], drivers[1]
}

func observe(t *testing.T, ctx context.Context, e engineHost, imageName, containerName string) (observed, told) {
	t.Helper()
	info, err := e.Info(ctx, client.InfoOptions{})
	require.NoError(t, err)
	image, err := e.ImageInspect(ctx, imageName)
	require.NoError(t, err)
	history, err := e.ImageHistory(ctx, imageName)
	require.NoError(t, err)
	inspected, err := e.ContainerInspect(ctx, containerName, client.ContainerInspectOptions{Size: true})
	require.NoError(t, err)
	container := inspected.Container
	listed, err := e.ContainerList(ctx, client.ContainerListOptions{All: true, Size: true})
	require.NoError(t, err)
	changes, err := e.Diff(ctx, containerName)
	require.NoError(t, err)

	assert.Equal(t, e.driver, info.Info.Driver)
	assert.Equal(t, e.driver, image.GraphDriver.Name)
	assert.Equal(t, e.driver, container.GraphDriver.Name)
	if assert.Len(t, listed.Items, 1) {
		assert.Equal(t, *container.SizeRw, listed.Items[0].SizeRw)
		assert.Equal(t, *container.SizeRootFs, listed.Items[0].SizeRootFs)
	}
	o := observed{
		Layers: image.RootFS.Layers, ImageSize: image.Size, Changes: changes,
		SizeRw: *container.SizeRw, SizeRootFs: *container.SizeRootFs,
	}
	for _, item := range history.Items {
		o.History = append(o.History, fmt.Sprint(item.CreatedBy, " ", item.Size))
	}
	d := told{Status: map[string]string{}, Image: image.GraphDriver.Data, Container: container.GraphDriver.Data}
	for _, status := range info.Info.DriverStatus {
		assert.NotContains(t, d.Status, status[0], "comes twice")
		d.Status[status[0]] = status[1]
	}
	return o, d
}

// idleScript runs until the container is stopped.
const idleScript = `trap "exit 0" TERM; sleep 3600 & wait`

// limitScript writes 64 MiB that cannot be compressed, deletes them and writes a little.
const limitScript = `dd if=/dev/urandom of=/big bs=1M count=64 conv=fsync
rm /big
sync -f /
echo again >/small && echo "and then: $(cat /small)"`
