package daemons

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// TestContainerdPromote: a container that runs becomes an image of containerd, from which containers are run.
func TestContainerdPromote(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, promoteInContainerd)
}

// promoteInContainerd is TestContainerdPromote in one containerd.
func promoteInContainerd(t *testing.T, ctx context.Context, h containerdHost) {
	store, c := h.store, layerCommands{t, ctx, h.cowshed}
	img, err := store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
	require.NoError(t, err)
	one, err := store.Create(ctx, "one", img, harness.ChangeScript+"; exec sleep 3600")
	require.NoError(t, err)
	output := filepath.Join(h.Dir, "one.out")
	require.NoError(t, store.StartTask(ctx, one, output))
	require.NoError(t, harness.WaitText(ctx, output, "changed"))

	manifest := strings.TrimSpace(c.ok("promote", "containerd:e2e/one", "containerd://e2e/cowshed/promoted:1", "-m", "why"))
	requireNoLeases(t, ctx, store)
	promoted := requirePromoted(t, ctx, store, img, "docker.io/cowshed/promoted:1")
	assert.Equal(t, manifest, promoted.Target().Digest.String())
	c.fails("has an image docker.io/cowshed/promoted:1", "promote", "containerd:e2e/one", "containerd://e2e/cowshed/promoted:1")

	// The store of the command, an archive and the fork of a container have the same.
	require.NoError(t, h.cowshed.Command(ctx, "init", "--root", h.cowshed.Root, "--driver", "btrfs"))
	assert.Equal(t, "web:1\n", c.ok("promote", "containerd:e2e/one", "web:1", "-m", "why"))
	assert.Contains(t, c.ok("changes", "containerd:e2e/one"), "A /data/new/file\n")
	archive := filepath.Join(h.Dir, "promoted.tar")
	c.ok("promote", "containerd:e2e/one", "docker-archive:"+archive, "--name", "cowshed/archive:1")
	_, err = store.ImportFile(ctx, archive)
	require.NoError(t, err)
	requirePromoted(t, ctx, store, img, "docker.io/cowshed/archive:1")
	assert.Equal(t, "fork:try\n", c.ok("fork", "containerd:e2e/one", "try"))
	c.ok("promote", "fork:try", "containerd://e2e/cowshed/fork:1")
	fork := requirePromoted(t, ctx, store, img, "docker.io/cowshed/fork:1")
	promotedIDs, err := promoted.RootFS(ctx)
	require.NoError(t, err)
	forkIDs, err := fork.RootFS(ctx)
	require.NoError(t, err)
	assert.Equal(t, promotedIDs, forkIDs)
	c.ok("rm", "fork:try")
	c.ok("export", "web:1", "containerd://e2e/cowshed/exported:1", "--root", h.cowshed.Root)
	requirePromoted(t, ctx, store, img, "docker.io/cowshed/exported:1")

	require.NoError(t, store.SnapshotTree(ctx, "one", func(container string) error {
		return store.ImageTree(ctx, promoted, func(image string) error {
			treecmp.Equal(t, container, image, sameLayer)
			return nil
		})
	}))
	require.NoError(t, h.cowshed.Command(ctx, "rmi", "web:1", "--root", h.cowshed.Root))
	requireKilledPromotion(t, ctx, h)
	require.NoError(t, store.StopTask(ctx, one))
	require.NoError(t, store.ImageService().Delete(ctx, img.Name()))
	require.NoError(t, store.CollectGarbage(ctx))
	result, err := store.Run(ctx, "alone", promoted, harness.CheckScript)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "as committed\n"}, result, "the image is whole without the one that it was made from")
}

// requirePromoted runs a container of an image, which is another with one layer more.
func requirePromoted(t *testing.T, ctx context.Context, store *harness.Store, of client.Image, name string) client.Image {
	t.Helper()
	img, err := store.GetImage(ctx, name)
	require.NoError(t, err)
	require.NoError(t, img.Unpack(ctx, store.Snapshotter))
	below, err := of.RootFS(ctx)
	require.NoError(t, err)
	ids, err := img.RootFS(ctx)
	require.NoError(t, err)
	require.Len(t, ids, len(below)+1)
	assert.Equal(t, below, ids[:len(below)])
	was, err := of.Spec(ctx)
	require.NoError(t, err)
	spec, err := img.Spec(ctx)
	require.NoError(t, err)
	assert.Equal(t, was.Config, spec.Config)
	result, err := store.Run(ctx, "of-"+strings.NewReplacer("/", "-", ":", "-").Replace(name), img, harness.CheckScript)
	require.NoError(t, err)
	assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
	return img
}

func requireNoLeases(t *testing.T, ctx context.Context, store *harness.Store) {
	t.Helper()
	held, err := store.LeasesService().List(ctx)
	require.NoError(t, err)
	assert.Empty(t, held)
}

// requireKilledPromotion kills a promotion while its layer goes to containerd. There is no image, and the next promotion leaves
// nothing of the first.
func requireKilledPromotion(t *testing.T, ctx context.Context, h containerdHost) {
	t.Helper()
	store := h.store
	img, err := store.GetImage(ctx, "docker.io/cowshed/sample:1")
	require.NoError(t, err)
	result, err := store.Run(ctx, "big", img, "head -c 268435456 /dev/urandom >/big")
	require.NoError(t, err)
	require.Zero(t, result.Code, result.Output)
	killed, kill := context.WithCancel(ctx)
	defer kill()
	ended := make(chan error, 1)
	go func() {
		ended <- h.cowshed.Command(killed, "promote", "containerd:e2e/big", "containerd://e2e/killed:1", "--config", h.cowshed.Config)
	}()
	require.Eventually(t, func() bool {
		uploads, err := store.ContentStore().ListStatuses(ctx)
		require.NoError(t, err)
		return len(uploads) > 0 && uploads[0].Offset > 0
	}, patience, time.Millisecond)
	kill()
	var exited *exec.ExitError
	require.ErrorAs(t, testfs.Result(ended), &exited)
	_, err = store.ImageService().Get(ctx, "docker.io/library/killed:1")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	c := layerCommands{t, ctx, h.cowshed}
	c.ok("promote", "containerd:e2e/one", "containerd://e2e/next:1")
	requireNoLeases(t, ctx, store)
	require.NoError(t, store.CollectGarbage(ctx))
	uploads, err := store.ContentStore().ListStatuses(ctx)
	require.NoError(t, err)
	assert.Empty(t, uploads)
}

// TestDockerPromote: a container of Docker that runs becomes an image of Docker.
func TestDockerPromote(t *testing.T) {
	inEach(t, dockerWith(withDockerAPI()), func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
		c := layerCommands{t, ctx, e.cowshed}
		require.NoError(t, e.CreateContainer(ctx, "web", "cowshed/sample:1", harness.ChangeScript+"; exec sleep 3600", nil))
		require.NoError(t, e.StartContainer(ctx, "web"))
		require.Eventually(t, func() bool {
			out, err := e.Output(ctx, "web")
			require.NoError(t, err)
			return strings.Contains(out, "changed")
		}, patience, time.Millisecond)
		c.ok("promote", "docker:web", "containerd://moby/cowshed/promoted:1")
		require.NoError(t, e.Remove(ctx, "web"))
		result, err := e.RunContainer(ctx, "again", "cowshed/promoted:1", harness.CheckScript, nil)
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: "as committed\n"}, result)
		require.NoError(t, e.Remove(ctx, "again"))
	})
}
