package daemons

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

const (
	unpackImages = 16
	unpackFiles  = 200 // of the upper layer of each image
)

// TestContainerdUnpackCut has sixteen clients unpack an image each, and cuts that off by killing a daemon or
// cancelling the requests. Committed snapshots are whole, and all can be unpacked afterwards.
func TestContainerdUnpackCut(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, func(t *testing.T, _ context.Context, h containerdHost) {
		for name, cut := range map[string]func(cancel context.CancelFunc){
			"daemon killed":     func(context.CancelFunc) { h.cowshed.Kill(); h.cowshed.Start() },
			"containerd killed": func(context.CancelFunc) { h.containerd.Kill(); h.containerd.Start() },
			"cancelled":         func(cancel context.CancelFunc) { cancel() },
		} {
			ctx := h.store.Context(contextOf(t, h.fs.timeout))
			images := importImages(t, ctx, h, strings.ReplaceAll(name, " ", "-"))
			for !cutUnpack(t, ctx, h, images, cut) {
				t.Logf("%s: all images had been unpacked before, and are unpacked again", name)
				require.NoError(t, ctx.Err(), "the images are unpacked each time before that is cut off")
				requireConnected(t, ctx, h.store)
				requireCleared(t, ctx, h.store)
				images = importImages(t, ctx, h, strings.ReplaceAll(name, " ", "-"))
			}
			requireConnected(t, ctx, h.store)
			require.NoError(t, unpackAll(ctx, images, h.store.Snapshotter), name)
			for i, img := range images {
				require.NoError(t, h.store.ImageTree(ctx, img, func(dir string) error {
					assertUnpacked(t, dir, i)
					return nil
				}))
			}
			require.NoError(t, h.store.RemoveLeases(ctx)) // of clients that were cut off
			requireCleared(t, ctx, h.store)
		}
	})
}

// cutUnpack unpacks images, and calls cut when some number of snapshots is there. It returns false if all had been unpacked by then.
func cutUnpack(t *testing.T, ctx context.Context, h containerdHost, images []client.Image, cut func(cancel context.CancelFunc)) bool {
	t.Helper()
	cancelled, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- unpackAll(cancelled, images, h.store.Snapshotter) }()
	// Each image has a snapshot of its own, beside that of the common layer.
	for n, enough := 0, 1+rand.IntN(unpackImages); n < enough; {
		select {
		case err := <-ended:
			require.NoError(t, err, "before it was cut off")
			return false
		case <-time.After(time.Millisecond):
		}
		keys, err := h.store.Keys(ctx)
		require.NoError(t, err)
		n = len(keys)
	}
	cut(cancel)
	err := testfs.Receive(t, ended)
	t.Logf("cut off: %v", err)
	return err != nil
}

// importImages imports images that have a layer in common and one of their own, without unpacking them.
func importImages(t *testing.T, ctx context.Context, h containerdHost, name string) []client.Image {
	t.Helper()
	images := make([]client.Image, unpackImages)
	for i := range images {
		files := make([]harness.File, unpackFiles)
		for n := range files {
			files[n] = harness.File{Path: fmt.Sprintf("own/%d/%d", n/50, n), Data: ownData(i, n)}
		}
		file := h.SaveImage(harness.BusyboxImage(t, h.Programs, files), fmt.Sprintf("cowshed/%s-%d:1", name, i))
		f, err := os.Open(file)
		require.NoError(t, err)
		imported, err := h.store.Import(ctx, f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.Len(t, imported, 1)
		images[i] = client.NewImage(h.store.Client, imported[0])
	}
	return images
}

func ownData(image, file int) string {
	return strings.Repeat(fmt.Sprintf("file %d of image %d\n", file, image), 1000)
}

func unpackAll(ctx context.Context, images []client.Image, snapshotter string) error {
	var group errgroup.Group
	for _, img := range images {
		group.Go(func() error { return img.Unpack(ctx, snapshotter) })
	}
	return group.Wait()
}

func assertUnpacked(t *testing.T, dir string, image int) {
	t.Helper()
	assert.FileExists(t, filepath.Join(dir, "bin", "busybox"))
	for n := range unpackFiles {
		data, err := os.ReadFile(filepath.Join(dir, "own", fmt.Sprint(n/50), fmt.Sprint(n)))
		require.NoError(t, err)
		require.True(t, string(data) == ownData(image, n), "file %d of image %d", n, image)
	}
}
