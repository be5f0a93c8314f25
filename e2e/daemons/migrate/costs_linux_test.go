package migrate

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// size is how much a root has.
type size struct {
	images, containers int
	bytes              int // of each image, besides a shared one
	// overhead is space that a migration takes besides 1 %, where the root is small.
	overhead int64
}

// costSize is that of the tests of costs: small, or in long runs the size that users have.
func costSize() size {
	if testfs.Long() {
		return size{100, 20, 32 << 20, 0}
	}
	return size{16, 4, 16 << 20, 1 << 20}
}

// TestCosts migrates a root to the plugin's home on the same filesystem, where all data is shared.
func TestCosts(t *testing.T) {
	for _, driver := range []string{"btrfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t, testfs.WithSize(12<<30)))
			ctx := testContext(t)
			n := costSize()
			s := makeLarge(t, ctx, h, driver, n)
			m := s.plugin()

			before := use(t, h.Data)
			begun := time.Now()
			m.run(t, ctx, "run")
			took := time.Since(begun)
			after := use(t, h.Data)
			t.Logf("%d images and %d containers of %d MiB: %s, %d KiB more space, %d KiB more data", n.images, n.containers,
				before.space>>20, took.Round(time.Millisecond), (after.space-before.space)>>10, (after.data-before.data)>>10)
			assert.LessOrEqual(t, after.space-before.space, before.space/100+n.overhead, "space")
			assert.LessOrEqual(t, after.data-before.data, int64(1<<20), "data of files")

			m.run(t, ctx, "undo")
			if testfs.Long() {
				t.Run("containerd", func(t *testing.T) { logCostsOfContainerd(t, ctx, s) })
			}
		})
	}
}

// logCostsOfContainerd migrates the root to containerd, which insists on having blobs. They take no more than the plan says.
func logCostsOfContainerd(t *testing.T, ctx context.Context, s scenario) {
	_, store, m := s.containerd()
	var plan struct{ Bytes, Blobs int64 }
	require.NoError(t, json.Unmarshal([]byte(m.run(t, ctx, "plan", "--json")), &plan))
	assert.Zero(t, plan.Bytes)
	before := use(t, s.host.Data)
	begun := time.Now()
	m.run(t, ctx, "run")
	took := time.Since(begun)
	after := use(t, s.host.Data)
	blobs := int64(0)
	require.NoError(t, store.ContentStore().Walk(store.Context(ctx), func(info content.Info) error {
		blobs += info.Size
		return nil
	}))
	t.Logf("to containerd: %s, %d MiB of blobs of at most %d, %d MiB more space", took.Round(time.Millisecond), blobs>>20, plan.Blobs>>20,
		(after.space-before.space)>>20)
	const encoding = 1 << 20 // of data that cannot be compressed, and manifests
	assert.LessOrEqual(t, blobs, plan.Blobs+plan.Blobs/1000+encoding)
	m.run(t, ctx, "undo")
	requireNothing(t, ctx, store)
}

// makeLarge makes images with a layer of some large files each, and containers that change one of these.
func makeLarge(t *testing.T, ctx context.Context, h *harness.Host, driver string, n size) scenario {
	t.Helper()
	e := h.StartDebianDocker(harness.EngineOptions{Driver: driver})
	base := harness.BusyboxImage(t, h.Programs)
	random := rand.NewChaCha8([32]byte{})
	const files = 4
	const batch = 10 // of images in one archive
	for first := 0; first < n.images; first += batch {
		var images []image
		for i := first; i < min(first+batch, n.images); i++ {
			layer := []entry{{path: "large/"}}
			for f := range files {
				data := make([]byte, n.bytes/files)
				_, _ = random.Read(data)
				layer = append(layer, entry{path: fmt.Sprintf("large/%d", f), data: string(data)})
			}
			images = append(images, image{tags(fmt.Sprintf("large:%d", i)), withLayer(t, base, "large files", layer...)})
		}
		loadImages(t, ctx, e, h.Dir, images)
	}
	var list []recipe
	for i := range n.containers {
		list = append(list, recipe{
			name: fmt.Sprintf("c%d", i), image: fmt.Sprintf("cowtest/large:%d", i),
			script: "echo changed >>/large/0; dd if=/dev/urandom of=/more bs=1M count=2; rm /large/1",
		})
	}
	makeContainers(t, ctx, e, list)
	e.Stop()
	return scenario{host: h, driver: driver, engine: e}
}

// used is the filesystem's own account, in bytes.
type used struct {
	space int64 // of all kinds
	data  int64 // of data alone, without metadata; whatever shares it counts once
}

// use returns how much of the btrfs is used.
func use(t *testing.T, mnt string) used {
	t.Helper()
	testfs.Sync(t, mnt)
	testfs.WaitDeleted(t, mnt)
	testfs.Sync(t, mnt)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(mnt, &st))
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(mnt))
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	devices, err := filepath.Glob(filepath.Join("/sys/fs/btrfs/*/devices", filepath.Base(mounts[0].Source)))
	require.NoError(t, err)
	require.Len(t, devices, 1)
	text, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(devices[0])), "allocation", "data", "bytes_used"))
	require.NoError(t, err)
	data, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	require.NoError(t, err)
	return used{space: int64(st.Blocks-st.Bfree) * st.Bsize, data: data}
}
