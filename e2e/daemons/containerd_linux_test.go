package daemons

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/rootfs"
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
	// start runs the snapshotter's server, if it is not part of containerd, and says how containerd reaches it.
	start func(t *testing.T, h *harness.Host) (harness.ContainerdOptions, *harness.Cowshed)
}

// builtin is a snapshotter of containerd itself.
func builtin(name string) snapshotter {
	return snapshotter{name, func(*testing.T, *harness.Host) (harness.ContainerdOptions, *harness.Cowshed) {
		return harness.ContainerdOptions{}, nil
	}}
}

// cowshed is Cowshed's snapshotter, with its differ. settings are more lines of its configuration.
func cowshed(settings ...string) snapshotter {
	return snapshotter{harness.CowshedSnapshotter, func(_ *testing.T, h *harness.Host) (harness.ContainerdOptions, *harness.Cowshed) {
		c := h.StartCowshed("containerd", settings...)
		return c.Options(), c
	}}
}

// snapshotters are those under test, each on btrfs. Containers of the first containerd of a host are on them, whose
// name is "containerd".
func snapshotters() []snapshotter {
	return []snapshotter{builtin("btrfs"), cowshed()}
}

// containerdHost is a host with a containerd.
type containerdHost struct {
	*harness.Host
	containerd *harness.Containerd
	cowshed    *harness.Cowshed // nil: the snapshotter is another
	store      *harness.Store   // on the snapshotter under test
	fs         filesystem
}

// containerdTest is a test with a containerd that has no images.
type containerdTest func(t *testing.T, ctx context.Context, h containerdHost)

// inEachSnapshotter runs the test with each snapshotter, on btrfs. When it is done, nothing stays of its snapshots.
func inEachSnapshotter(t *testing.T, list []snapshotter, test containerdTest) {
	t.Helper()
	inEachSnapshotterOn(t, onBtrfs(), list, test)
}

// inEachSnapshotterOn is inEachSnapshotter on another filesystem.
func inEachSnapshotterOn(t *testing.T, fs filesystem, list []snapshotter, test containerdTest) {
	t.Helper()
	for _, s := range list {
		t.Run(s.name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			h := containerdHost{Host: harness.NewHost(t, fs.fresh(t)), fs: fs}
			fs.prepare(t, h.Host)
			var opts harness.ContainerdOptions
			opts, h.cowshed = s.start(t, h.Host)
			h.containerd = h.StartContainerd("containerd", opts)
			h.store = h.containerd.Store("e2e", s.name)
			ctx := h.store.Context(contextOf(t, fs.timeout))

			test(t, ctx, h)

			ctx = h.store.Context(contextOf(t, fs.timeout))
			if h.cowshed != nil {
				requireNoneLost(t, ctx, h)
			}
			requireCleared(t, ctx, h.store)
			if h.cowshed != nil {
				requireNoneLost(t, ctx, h) // there are no snapshots any more
				fs.requireTidy(t, h.Host, h.cowshed)
			}
		})
	}
}

// volumes lists the subvolumes that storage drivers have made for layers.
func volumes(t require.TestingT, h *harness.Host) []string {
	all, err := testfs.ListSubvolumes(h.Data)
	require.NoError(t, err)
	return slices.DeleteFunc(all, func(path string) bool {
		return filepath.Base(path) == "btrfs" // Cowshed keeps the others in it
	})
}

// requireNoneLost collects garbage until each volume is that of a snapshot. containerd removes the volume of a snapshot, once it has
// failed, when another snapshot has been removed: that is Reach's.
func requireNoneLost(t *testing.T, ctx context.Context, h containerdHost) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, h.store.Reach(ctx))
		require.NoError(c, h.store.CollectGarbage(ctx))
		keys, err := h.store.Keys(ctx)
		require.NoError(c, err)
		volumes := h.fs.volumes(c, h.Host)
		assert.LessOrEqual(c, len(volumes), len(keys), "each volume is that of a snapshot: %q, %q", volumes, keys)
	}, h.fs.soon, 100*time.Millisecond)
}

// requireConnected waits until containerd has noticed that its snapshotter's server is back.
func requireConnected(t *testing.T, ctx context.Context, store *harness.Store) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.NoError(c, store.Reach(ctx)) }, patience, 50*time.Millisecond)
}

// requireCleared removes all that is in the store.
func requireCleared(t *testing.T, ctx context.Context, store *harness.Store) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, store.Clear(ctx))
		keys, err := store.Keys(ctx)
		require.NoError(c, err)
		require.Empty(c, keys)
	}, patience, 100*time.Millisecond)
}

// requireNoQgroups checks that no qgroup stays of volumes that are gone. A daemon that starts removes those that could
// not go while the kernel was cleaning up.
func requireNoQgroups(t *testing.T, h *harness.Host, c *harness.Cowshed) {
	t.Helper()
	testfs.WaitDeleted(t, h.Data)
	c.Restart()
	assert.Empty(t, testfs.StaleQgroups(t, h.Data))
}

// TestContainerd takes an image through the life it has in containerd: imported, run, changed, committed, pushed,
// and pulled by another containerd.
func TestContainerd(t *testing.T) {
	inEachSnapshotter(t, snapshotters(), liveInContainerd)
}

// liveInContainerd is TestContainerd in one containerd.
func liveInContainerd(t *testing.T, ctx context.Context, h containerdHost) {
	here := h.store
	registry := h.StartRegistry()
	img, err := here.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
	require.NoError(t, err)

	result, err := here.Run(ctx, "one", img, harness.ChangeScript)
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
	if h.cowshed != nil {
		requireNative(t, ctx, h.cowshed, "snapshots")
		assert.NotContains(t, h.cowshed.Log(), "a blob is read by requests", "layers are read in containerd's files")
	}

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
	result, err = there.Run(ctx, "one", pulled, harness.CheckScript)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "as committed\n"}, result)

	// A pushed image is unpacked again after all of it is gone here.
	requireCleared(t, ctx, here)
	pulled, err = here.PullImage(ctx, committed.Name())
	require.NoError(t, err)
	result, err = here.Run(ctx, "again", pulled, harness.CheckScript)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
	requireCleared(t, ctx, there)
}

// requireNative checks that the daemon has compared volumes, and has never walked them.
func requireNative(t *testing.T, ctx context.Context, c *harness.Cowshed, service string) {
	t.Helper()
	native, walked, err := c.Comparisons(ctx, service)
	require.NoError(t, err)
	assert.Positive(t, native)
	assert.Empty(t, walked)
}

// TestContainerdRestart kills containerd, and its snapshotter's server, while a container runs. The container goes on
// running, and its changes can then be committed.
func TestContainerdRestart(t *testing.T) {
	inEachSnapshotter(t, snapshotters(), restartContainerd)
}

// restartContainerd is TestContainerdRestart in one containerd.
func restartContainerd(t *testing.T, ctx context.Context, h containerdHost) {
	store := h.store
	img, err := store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
	require.NoError(t, err)
	c, err := store.Create(ctx, "one", img, harness.ChangeScript+"; exec sleep 3600")
	require.NoError(t, err)
	output := filepath.Join(h.Dir, "one.out")
	require.NoError(t, store.StartTask(ctx, c, output))
	require.NoError(t, harness.WaitText(ctx, output, "changed"))

	for _, restart := range restarts(h) {
		restart()
		assert.Contains(t, requireKeys(t, ctx, store), "one")
		c, err = store.LoadContainer(ctx, "one")
		require.NoError(t, err)
	}
	require.NoError(t, store.StopTask(ctx, c))
	committed, err := store.Commit(ctx, "one", img, "cowshed/sample:2")
	require.NoError(t, err)
	result, err := store.Run(ctx, "two", committed, harness.CheckScript)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
}

// requireKeys lists the store's snapshots. containerd notices after a moment that its snapshotter's server is back.
func requireKeys(t *testing.T, ctx context.Context, store *harness.Store) (keys []string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var err error
		keys, err = store.Keys(ctx)
		require.NoError(c, err)
	}, patience, 50*time.Millisecond)
	return keys
}

// restarts are the ways in which daemons are started again.
func restarts(h containerdHost) []func() {
	kill := func() {
		h.containerd.Kill()
		h.containerd.Start()
	}
	if h.cowshed == nil {
		return []func(){kill}
	}
	return []func(){kill, h.cowshed.Restart, func() {
		h.cowshed.Kill()
		h.cowshed.Start()
	}, func() {
		h.cowshed.Kill()
		h.containerd.Kill()
		h.cowshed.Start()
		h.containerd.Start()
	}}
}

// TestContainerdAtOnce runs, commits and removes containers of one image at the same time.
func TestContainerdAtOnce(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, runAtOnce)
}

// runAtOnce is TestContainerdAtOnce in one containerd.
func runAtOnce(t *testing.T, ctx context.Context, h containerdHost) {
	const containers = 10
	store := h.store
	img, err := store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
	require.NoError(t, err)

	var g errgroup.Group
	for n := range containers {
		g.Go(func() error {
			id := fmt.Sprintf("c%d", n)
			result, err := store.Run(ctx, id, img, fmt.Sprintf("echo %d >/number; %s", n, harness.ChangeScript))
			if err != nil || result.Code != 0 {
				return fmt.Errorf("%s: %v: %w", id, result, err)
			}
			committed, err := store.Commit(ctx, id, img, "cowshed/"+id)
			if err != nil {
				return err
			}
			result, err = store.Run(ctx, id+"-again", committed, "cat /number; "+harness.CheckScript)
			if want := fmt.Sprintf("%d\nas committed\n", n); err != nil || result.Output != want {
				return fmt.Errorf("%s: %v: %w", id, result, err)
			}
			return store.RemoveContainer(ctx, id)
		})
	}
	require.NoError(t, g.Wait())
}

// TestContainerdLimit writes to the limit of a container, which then can delete and write again. Another value of the label, which
// reaches Cowshed through containerd's metadata, changes the limit.
func TestContainerdLimit(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, runToLimit)
}

// runToLimit is TestContainerdLimit in one containerd.
func runToLimit(t *testing.T, ctx context.Context, h containerdHost) {
	img, err := h.store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
	require.NoError(t, err)
	result, err := h.store.Run(ctx, "one", img, limitScript,
		snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: strconv.Itoa(32 << 20)}))
	require.NoError(t, err)
	assert.Contains(t, result.Output, "Disk quota exceeded")
	assert.Contains(t, result.Output, "and then: again\n")
	usage, err := h.store.Snapshots().Usage(ctx, "one")
	require.NoError(t, err)
	assert.Less(t, usage.Size, int64(32<<20))

	changed, err := h.store.Create(ctx, "changed", img, write6, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: strconv.Itoa(5 << 20)}))
	require.NoError(t, err)
	for _, step := range []struct {
		bytes int
		want  string
	}{{12 << 20, fits}, {4 << 20, overLimit}} {
		info, err := h.store.Snapshots().Update(ctx, snapshots.Info{
			Name: "changed", Labels: map[string]string{snapshots.LabelSnapshotMaxSize: strconv.Itoa(step.bytes)},
		}, "labels."+snapshots.LabelSnapshotMaxSize)
		require.NoError(t, err)
		assert.Equal(t, strconv.Itoa(step.bytes), info.Labels[snapshots.LabelSnapshotMaxSize])
		result, err := h.store.RunTask(ctx, changed)
		require.NoError(t, err)
		assert.Contains(t, result.Output, step.want)
	}
}

// TestContainerdManyFiles commits three changes of an image of 50,000 files, which are found without a walk.
func TestContainerdManyFiles(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, commitFewOfMany)
}

// commitFewOfMany is TestContainerdManyFiles in one containerd.
func commitFewOfMany(t *testing.T, ctx context.Context, h containerdHost) {
	img, err := h.store.ImportFile(ctx, h.SaveImage(manyImage(t, h.Host), "cowshed/many:1"))
	require.NoError(t, err)
	result, err := h.store.Run(ctx, "one", img, fewChangesScript)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "changed\n"}, result)
	begun := time.Now()
	layer, err := rootfs.CreateDiff(ctx, "one", h.store.Snapshots(), h.store.DiffService())
	require.NoError(t, err)
	t.Logf("Compare took %s, for a layer of %d bytes", time.Since(begun), layer.Size)
	assert.Less(t, layer.Size, int64(4<<10))
	requireNative(t, ctx, h.cowshed, "snapshots")
}
