package daemons

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

const (
	loadClients    = 16
	loadContainers = 200
	loadSteps      = 5 // of a container's life, see liveOnce
)

// load is many containers of one image that live their lives at once, without processes.
type load struct {
	store      *harness.Store
	image      string // key of the snapshot
	name       string // tells its containers from those of other loads
	containers int
}

// run has clients work until all containers have lived, or one of them fails. step is called after each step of a life.
func (l load) run(ctx context.Context, step func()) error {
	ids := make(chan string, l.containers)
	for n := range l.containers {
		ids <- fmt.Sprintf("%s-%d", l.name, n)
	}
	close(ids)
	group, ctx := errgroup.WithContext(ctx)
	for range loadClients {
		group.Go(func() (err error) {
			// Content that a lease holds is not garbage.
			leased, done, err := l.store.WithLease(ctx)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx))) }()
			for id := range ids {
				if err := l.liveOnce(leased, id, step); err != nil {
					return fmt.Errorf("container %s: %w", id, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// liveOnce makes a container's snapshot, changes, diffs, commits and removes it.
func (l load) liveOnce(ctx context.Context, id string, step func()) error {
	s, committed := l.store.Snapshots(), id+"-committed"
	mounts, err := s.Prepare(ctx, id, l.image)
	if err != nil {
		return err
	}
	step()
	if err := mount.WithTempMount(ctx, mounts, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "id"), []byte(id), 0o644)
	}); err != nil {
		return err
	}
	step()
	layer, err := rootfs.CreateDiff(ctx, id, s, l.store.DiffService())
	if err != nil {
		return err
	}
	if !images.IsLayerType(layer.MediaType) || layer.Size == 0 {
		return fmt.Errorf("the diff is %v", layer)
	}
	step()
	if err := s.Commit(ctx, committed, id); err != nil {
		return err
	}
	step()
	if err := s.Remove(ctx, committed); err != nil {
		return err
	}
	step()
	return nil
}

// prepareLoad imports an image and returns the number of its snapshots.
func prepareLoad(t *testing.T, ctx context.Context, h containerdHost) (l load, snapshots int) {
	t.Helper()
	img, err := h.store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
	require.NoError(t, err)
	layers, err := img.RootFS(ctx)
	require.NoError(t, err)
	return load{store: h.store, image: identity.ChainID(layers).String(), name: "load", containers: loadContainers}, len(layers)
}

// requireOnlyImage collects garbage, after which only the image is left. containerd asks for the destruction of
// collected volumes after it has answered.
func requireOnlyImage(t *testing.T, ctx context.Context, h containerdHost, image string, snapshots int) {
	t.Helper()
	// If containerd could not clean up, since the daemon was away, it tries again when a snapshot has been removed.
	leased, done, err := h.store.WithLease(ctx)
	require.NoError(t, err)
	_, err = h.store.Snapshots().View(leased, "last", image)
	require.NoError(t, err)
	require.NoError(t, h.store.Snapshots().Remove(leased, "last"))
	require.NoError(t, done(ctx))
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.NoError(c, h.store.CollectGarbage(ctx))
		keys, err := h.store.Keys(ctx)
		require.NoError(c, err)
		assert.Len(c, keys, snapshots)
		assert.Len(c, h.fs.volumes(c, h.Host), snapshots)
	}, patience, 50*time.Millisecond)
}

// TestContainerdLoad has 200 containers live their lives at the hands of 16 clients.
func TestContainerdLoad(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{cowshed()}, func(t *testing.T, ctx context.Context, h containerdHost) {
		l, snapshots := prepareLoad(t, ctx, h)
		var steps atomic.Int64
		require.NoError(t, l.run(ctx, func() { steps.Add(1) }))
		assert.EqualValues(t, loadContainers*loadSteps, steps.Load())
		native, walked, err := h.cowshed.Comparisons(ctx, "snapshots")
		require.NoError(t, err)
		assert.Equal(t, loadContainers, native)
		assert.Empty(t, walked)
		requireOnlyImage(t, ctx, h, l.image, snapshots)
	})
}

// TestContainerdLoadKilled kills the daemon at any point under that load. Unfinished work is gone when it is back,
// and existing images can be used.
func TestContainerdLoadKilled(t *testing.T) {
	const kills = 3
	inEachSnapshotter(t, []snapshotter{cowshed()}, func(t *testing.T, ctx context.Context, h containerdHost) {
		l, snapshots := prepareLoad(t, ctx, h)
		for n := range kills {
			ctx := h.store.Context(contextOf(t, h.fs.timeout))
			l.name = fmt.Sprintf("load-%d", n)
			l.containers = 100 * loadContainers // so that it is still at work when the daemon is killed, however late that is
			after := int64(1 + rand.IntN(loadContainers*loadSteps/2))
			t.Logf("killed after %d steps", after)
			var steps atomic.Int64
			reached := make(chan struct{})
			reach := sync.OnceFunc(func() { close(reached) })
			ended := make(chan error, 1)
			go func() {
				ended <- l.run(ctx, func() {
					if steps.Add(1) >= after {
						reach()
					}
				})
			}()
			select {
			case <-reached:
			case err := <-ended:
				t.Fatalf("the load ended after %d steps: %v", steps.Load(), err)
			}
			h.cowshed.Kill()
			require.Error(t, <-ended, "after %d steps", steps.Load())
			h.cowshed.Start()
			requireKeys(t, ctx, h.store)
			requireOnlyImage(t, ctx, h, l.image, snapshots)
		}
		l.name, l.containers = "after", loadContainers
		require.NoError(t, l.run(h.store.Context(contextOf(t, h.fs.timeout)), func() {}))
	})
}
