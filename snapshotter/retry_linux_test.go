package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/live"
)

// retrying is a host with a clock of its own, in which RetryCleanup runs.
type retrying struct {
	*host
	backend *faultyBackend
	tries   atomic.Int64
	stop    func() // ends RetryCleanup, after which the log may be read
}

// withRetries calls do with a host, in which the clock goes on only while everything waits for it.
func withRetries(t *testing.T, do func(h *retrying)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &retrying{}
		h.host = newHostOn(t, func(t *testing.T) (string, openFunc) {
			mnt, open := onBtrfs()(t)
			return mnt, func(home string) (cowcommon.Backend, error) {
				b, err := open(home)
				h.backend = &faultyBackend{Backend: b}
				h.backend.disarm()
				return h.backend, err
			}
		}, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			h.RetryCleanup(ctx, func() { h.tries.Add(1) })
		}()
		h.stop = func() {
			cancel()
			<-ended
		}
		do(h)
		h.stop()
	})
}

// doomMounted removes a mounted snapshot, and calls Cleanup as containerd does. It returns the volume.
func (h *retrying) doomMounted(key string) (volume string, unmount func()) {
	h.t.Helper()
	_, unmount = h.mountAt(h.prepare(key, ""))
	volume = h.volume(key)
	require.NoError(h.t, h.Remove(h.t.Context(), key))
	require.NoError(h.t, h.Cleanup(h.t.Context()))
	require.Contains(h.t, h.volumes(), volume)
	return volume, unmount
}

// TestRetryCleanup: the volume of a removed snapshot is destroyed within a minute after its last user has gone. Until then it is
// tried less and less often, and the log and Doomed tell why it is still there.
func TestRetryCleanup(t *testing.T) {
	withRetries(t, func(h *retrying) {
		volume, unmount := h.doomMounted("quick")
		unmount()
		time.Sleep(retryPauses.First)
		synctest.Wait()
		assert.NotContains(t, h.volumes(), volume)
		assert.EqualValues(t, 1, h.tries.Swap(0))

		volume, unmount = h.doomMounted("long")
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.InDelta(t, 60, h.tries.Load(), 10)
		assert.Contains(t, h.Doomed()[volume], "in use")
		unmount()
		time.Sleep(retryPauses.Longest)
		synctest.Wait()
		assert.NotContains(t, h.volumes(), volume)
		assert.Empty(t, h.Doomed())
		h.stop()
		assert.Equal(t, 1, strings.Count(h.log.String(), "destroyed later\" volume="+volume), h.log.String())
		assert.Contains(t, h.log.String(), "destroyed at last\" volume="+volume)
	})
}

// TestRetryCleanupRests: while nothing is doomed there are no attempts. Those of Cleanup and of its own errors end them too.
func TestRetryCleanupRests(t *testing.T) {
	withRetries(t, func(h *retrying) {
		rest := func() {
			t.Helper()
			synctest.Wait()
			h.tries.Store(0)
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			assert.Zero(t, h.tries.Load())
		}
		rest()
		h.prepare("removed", "")
		require.NoError(t, h.Remove(h.t.Context(), "removed"))
		synctest.Wait() // RetryCleanup has seen it
		require.NoError(t, h.Cleanup(h.t.Context()))
		rest()

		h.prepare("failed", "")
		require.NoError(t, h.Remove(h.t.Context(), "failed"))
		h.backend.arm(0, false)
		time.Sleep(retryPauses.First)
		synctest.Wait()
		assert.Len(t, h.Doomed(), 1)
		time.Sleep(2 * retryPauses.First)
		synctest.Wait()
		assert.Empty(t, h.Doomed())
		assert.Empty(t, h.volumes())
		rest()
		h.stop()
		assert.Contains(t, h.log.String(), errFault.Error())
	})
}

// TestRetryCleanupEnds: RetryCleanup ends at once in a pause, and while nothing is doomed. The next start destroys the volume.
func TestRetryCleanupEnds(t *testing.T) {
	withRetries(t, func(h *retrying) {
		start := time.Now()
		h.stop()
		assert.Zero(t, time.Since(start))
	})
	withRetries(t, func(h *retrying) {
		_, unmount := h.doomMounted("mounted")
		time.Sleep(time.Hour)
		start := time.Now()
		h.stop()
		assert.Zero(t, time.Since(start))
		unmount()
		require.NoError(t, h.restart(nil))
		assert.Empty(t, h.volumes())
	})
}

// slowRemove waits before it removes a volume.
type slowRemove struct {
	cowcommon.Backend
	begun, goOn chan struct{}
}

func (b slowRemove) Unwrap() cowcommon.Backend { return b.Backend }

func (b slowRemove) Remove(ctx context.Context, name string) error {
	close(b.begun)
	<-b.goOn
	return b.Backend.Remove(ctx, name)
}

// TestCleanupWaitsForCleanup: Cleanup ends only when another has destroyed the volumes that it found, or with its context.
func TestCleanupWaitsForCleanup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Options{})
		h.prepare("removed", "")
		require.NoError(t, h.Remove(t.Context(), "removed"))
		slow := slowRemove{h.backend, make(chan struct{}), make(chan struct{})}
		h.Snapshotter.backend = slow
		cleaned := make(chan error, 2)
		cleanUp := func() { cleaned <- h.Cleanup(t.Context()) }
		go cleanUp()
		<-slow.begun
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, h.Cleanup(ctx), context.Canceled)
		go cleanUp()
		synctest.Wait()
		assert.Empty(t, cleaned)
		close(slow.goOn)
		require.NoError(t, <-cleaned)
		require.NoError(t, <-cleaned)
		assert.Empty(t, h.volumes())
	})
}

// TestRetryCleanupOfMoments: the snapshot of a container that is gone goes after its last user, and after other programs at work.
func TestRetryCleanupOfMoments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, ctx := newLiveHost(t), t.Context()
		retries, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			h.RetryCleanup(retries, func() {})
		}()
		// removeWith removes a container with a snapshot, and returns the snapshot an hour later.
		removeWith := func(key string, keep func(moment string)) string {
			t.Helper()
			h.prepare(key, "")
			var m live.Moment
			h.other(func(layers *live.Layers, _ cowcommon.Backend) {
				var err error
				m, err = layers.Snapshot(ctx, h.volume(key), "one", live.SnapshotOptions{})
				require.NoError(t, err)
			})
			keep(m.Volume)
			require.NoError(t, h.Remove(ctx, key))
			time.Sleep(time.Hour)
			synctest.Wait()
			assert.Equal(t, []string{m.Volume}, h.names())
			assert.True(t, h.opts.Layers.HasLeft())
			return m.Volume
		}
		goesSoon := func() {
			t.Helper()
			time.Sleep(retryPauses.Longest)
			synctest.Wait()
			assert.Empty(t, h.names())
			assert.False(t, h.opts.Layers.HasLeft())
		}
		used := removeWith("ns/1/used", func(moment string) {
			_, err := h.backend.Mount(ctx, moment, "")
			require.NoError(t, err)
		})
		require.NoError(t, h.backend.Unmount(ctx, used))
		goesSoon()

		beginWork := func(string) {
			var err error
			h.atWork, err = os.Open(filepath.Join(h.dir, ".lock"))
			require.NoError(t, err)
			require.NoError(t, flock.Shared(ctx, h.atWork))
		}
		removeWith("ns/2/web", beginWork)
		require.NoError(t, h.atWork.Close())
		goesSoon()

		beginWork("")
		require.NoError(t, h.Cleanup(ctx)) // containerd's, while RetryCleanup rests
		assert.True(t, h.opts.Layers.HasLeft())
		require.NoError(t, h.atWork.Close())
		goesSoon()
		stop()
		<-ended
		assert.Equal(t, 1, strings.Count(h.log.String(), "it stays for now"), h.log.String())
	})
}
