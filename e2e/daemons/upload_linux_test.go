package daemons

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// uploadHeld is how long the documentation says that an upload is held when the daemon that makes it is killed.
const uploadHeld = time.Minute

// TestContainerdUploadEnds ends a diff while its layer is being uploaded, by cancelling the request and by killing the
// daemon. Neither a lease nor the upload nor a blob is left, at once or when the lease has expired. Only the long variant
// waits for that; the short one looks at the lease's time and deletes it.
func TestContainerdUploadEnds(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, func(t *testing.T, ctx context.Context, h containerdHost) {
		mounts, err := h.store.Snapshots().Prepare(ctx, "active", "", snapshots.WithLabels(map[string]string{
			"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
		}))
		require.NoError(t, err)
		require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
			noise := make([]byte, 256<<20)
			_, _ = rand.Read(noise)
			return os.WriteFile(filepath.Join(dir, "noise"), noise, 0o644)
		}))
		start := func() {
			h.cowshed.Start()
			requireConnected(t, ctx, h.store)
		}
		for _, c := range []struct {
			name string
			end  func(cancel context.CancelFunc)
			// again makes it as it was before end, if that came too late.
			again func()
			held  time.Duration
		}{
			{"cancelled", func(cancel context.CancelFunc) { cancel() }, func() {}, 0},
			{"killed", func(context.CancelFunc) { h.cowshed.Kill() }, func() {
				start()
				require.NoError(t, h.store.RemoveLeases(ctx))
			}, uploadHeld}, // and not started before the end
		} {
			begun := time.Now()
			for !cutUpload(t, ctx, h.store, mounts, c.end) {
				t.Logf("%s: the upload had ended before, and is made again", c.name)
				require.NoError(t, ctx.Err(), "each upload ends before it is cut off")
				c.again()
				begun = time.Now()
			}
			if c.held > 0 && !testfs.Long() {
				deleteLeases(t, ctx, h.store, c.held)
				c.held = 0
			}
			require.EventuallyWithT(t, func(t *assert.CollectT) {
				assert.NoError(t, h.store.CollectGarbage(ctx))
				assert.Zero(t, uploaded(t, ctx, h.store))
				assert.Empty(t, contents(t, ctx, h.store))
				leases, err := h.store.LeasesService().List(ctx)
				assert.NoError(t, err)
				assert.Empty(t, leases)
			}, c.held+testfs.Patience, 100*time.Millisecond, c.name)
			t.Logf("%s: nothing is left after %s", c.name, time.Since(begun).Round(time.Millisecond))
		}
		start()
		require.NoError(t, h.store.Snapshots().Remove(ctx, "active"))
	})
}

// cutUpload makes a diff, and calls end while its layer is being uploaded. It returns false if the diff was complete by then.
func cutUpload(t *testing.T, ctx context.Context, store *harness.Store, mounts []mount.Mount, end func(cancel context.CancelFunc)) bool {
	t.Helper()
	cancelled, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := store.DiffService().Compare(cancelled, nil, mounts, diff.WithMediaType(ocispec.MediaTypeImageLayerGzip))
		ended <- err
	}()
	for {
		select {
		case err := <-ended:
			require.NoError(t, err, "before it was cut off")
			return false
		case <-time.After(time.Millisecond):
		}
		if uploaded(t, ctx, store) > 0 {
			break
		}
	}
	end(cancel)
	return <-ended != nil
}

// deleteLeases deletes all leases. Each expires in the given time at most.
func deleteLeases(t *testing.T, ctx context.Context, store *harness.Store, held time.Duration) {
	t.Helper()
	list, err := store.LeasesService().List(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, list)
	for _, lease := range list {
		expires, err := time.Parse(time.RFC3339, lease.Labels["containerd.io/gc.expire"])
		require.NoError(t, err, "%v", lease)
		assert.LessOrEqual(t, time.Until(expires), held)
		require.NoError(t, store.LeasesService().Delete(ctx, lease))
	}
}

// uploaded is how many bytes of layers have been written that are not committed.
func uploaded(t assert.TestingT, ctx context.Context, store *harness.Store) int64 {
	statuses, err := store.ContentStore().ListStatuses(ctx)
	assert.NoError(t, err)
	var bytes int64
	for _, status := range statuses {
		if strings.HasPrefix(status.Ref, "cowshed-diff-") {
			bytes += status.Offset
		}
	}
	return bytes
}

// contents lists the digests of all blobs.
func contents(t assert.TestingT, ctx context.Context, store *harness.Store) []string {
	var digests []string
	assert.NoError(t, store.ContentStore().Walk(ctx, func(info content.Info) error {
		digests = append(digests, info.Digest.String())
		return nil
	}))
	return digests
}
