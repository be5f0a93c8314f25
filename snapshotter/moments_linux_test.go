package snapshotter

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/live"
)

// liveHost is a snapshotter whose volumes are forked, by a program with the same home: that has a Backend of its own.
type liveHost struct {
	*host
	dir    string
	atWork *os.File // the lock of another program
}

func newLiveHost(t *testing.T) *liveHost {
	t.Helper()
	h := &liveHost{host: newHost(t, Options{})}
	h.dir = filepath.Join(h.mnt, "live")
	require.NoError(t, h.restart(nil))
	return h
}

// restart closes the snapshotter and opens it again.
func (h *liveHost) restart(meanwhile func(b cowcommon.Backend)) error {
	h.t.Helper()
	require.NoError(h.t, h.Close())
	return h.openAgain(meanwhile)
}

func (h *liveHost) openAgain(meanwhile func(b cowcommon.Backend)) error {
	h.t.Helper()
	backend := h.openBackend()
	if meanwhile != nil {
		meanwhile(backend)
	}
	h.opts.Layers = live.New(backend, h.dir, h.opts.Logger)
	s, err := New(context.WithoutCancel(h.t.Context()), filepath.Join(h.mnt, "snapshotter"), backend, h.opts)
	if err != nil {
		require.NoError(h.t, backend.Close())
		return err
	}
	h.Snapshotter = s
	return nil
}

// other calls do as another program does.
func (h *liveHost) other(do func(layers *live.Layers, backend cowcommon.Backend)) {
	h.t.Helper()
	backend := h.openBackend()
	defer func() { require.NoError(h.t, backend.Close()) }()
	do(live.New(backend, h.dir, h.opts.Logger), backend)
}

func (h *liveHost) names() (names []string) {
	h.t.Helper()
	for v, err := range h.backend.Volumes(h.t.Context()) {
		require.NoError(h.t, err)
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return names
}

// TestForksOfSnapshots: the forks and snapshots of a volume stay across restarts and Cleanup. The snapshots go with the volume, and
// the forks stay until they are removed or have expired.
func TestForksOfSnapshots(t *testing.T) {
	h, ctx := newLiveHost(t), t.Context()
	for _, key := range []string{"ns/1/web", "ns/2/other"} {
		_, err := h.Prepare(ctx, key, "")
		require.NoError(t, err)
	}
	web, err := h.VolumeOf(ctx, "ns", "web")
	require.NoError(t, err)
	other, err := h.VolumeOf(ctx, "ns", "other")
	require.NoError(t, err)
	h.other(func(layers *live.Layers, _ cowcommon.Backend) {
		_, err := layers.Snapshot(ctx, web, "one", live.SnapshotOptions{})
		require.NoError(t, err)
		_, err = layers.Fork(ctx, web, []string{"try"}, live.ForkOptions{})
		require.NoError(t, err)
		_, err = layers.Snapshot(ctx, "try", "of-fork", live.SnapshotOptions{})
		require.NoError(t, err)
		_, err = layers.Fork(ctx, other, []string{"brief"}, live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(-time.Second)}})
		require.NoError(t, err)
	})
	require.Len(t, h.names(), 8)
	require.NoError(t, h.restart(nil))
	require.NoError(t, h.Cleanup(ctx))
	all := h.names()
	require.Len(t, all, 6, "the fork that has expired is gone, with its moment: %v", all)
	assert.Empty(t, h.Lost())
	assert.NotContains(t, h.log.String(), "is not the snapshotter's")
	usage, err := h.Usage(ctx, "ns/1/web")
	require.NoError(t, err)
	assert.GreaterOrEqual(t, usage.Size, int64(0))

	require.NoError(t, h.Remove(ctx, "ns/1/web"))
	h.other(func(layers *live.Layers, _ cowcommon.Backend) { require.NoError(t, layers.Sweep(ctx)) })
	assert.Equal(t, all, h.names(), "the volume is there until Cleanup")
	require.NoError(t, h.Cleanup(ctx))
	left := h.names()
	assert.Contains(t, left, "try")
	assert.Contains(t, left, other)
	assert.Len(t, left, 4, "the fork, its moment and its snapshot: %v", left)
	require.NoError(t, h.restart(nil))
	assert.Equal(t, left, h.names())
	require.NoError(t, h.backend.Remove(ctx, "try"))
	require.NoError(t, h.Cleanup(ctx))
	assert.Equal(t, []string{other}, h.names())
}

// TestVolumeOf: a view has no volume of its own, and a key that is not there has none.
func TestVolumeOf(t *testing.T) {
	h, ctx := newHost(t, Options{}), t.Context()
	_, err := h.Prepare(ctx, "ns/1/a", "")
	require.NoError(t, err)
	require.NoError(t, h.Commit(ctx, "ns/2/image", "ns/1/a"))
	_, err = h.View(ctx, "ns/3/view", "ns/2/image")
	require.NoError(t, err)
	volume, err := h.VolumeOf(ctx, "ns", "image")
	require.NoError(t, err)
	assert.True(t, IsVolumeName(volume), volume)
	_, err = h.VolumeOf(ctx, "ns", "view")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	for _, namespace := range []string{"ns", "n", "", "ns/2"} {
		_, err = h.VolumeOf(ctx, namespace, "a")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
}

// TestUnfinishedRollback: a volume that has no name for the moment, since another program replaces it, is not taken for lost. The
// next mount or start ends a step that a crash interrupted.
func TestUnfinishedRollback(t *testing.T) {
	t.Run("mount", func(t *testing.T) { testUnfinished(t, func(*liveHost, string) {}) })
	t.Run("start", func(t *testing.T) {
		testUnfinished(t, func(h *liveHost, volume string) {
			require.NoError(t, h.restart(nil))
			assert.Contains(t, h.names(), volume)
		})
	})
}

func testUnfinished(t *testing.T, afterwards func(h *liveHost, volume string)) {
	t.Helper()
	ctx := t.Context()
	h, web := newUnfinished(t)
	_, err := h.Stat(ctx, "ns/1/web")
	require.NoError(t, err, "it is not removed while the other program is at work")
	assert.Empty(t, h.ledger(gone))
	_, err = h.Mounts(ctx, "ns/1/web")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, h.atWork.Close())

	afterwards(h, web)
	_, err = h.Mounts(ctx, "ns/1/web")
	require.NoError(t, err)
	assert.Contains(t, h.names(), web)
	kept, err := h.opts.Layers.Snapshots(ctx, web)
	require.NoError(t, err)
	assert.Len(t, kept, 2)
}

// newUnfinished makes a snapshot whose volume has no name, since another program is between the two renames of a rollback. It
// returns the volume.
func newUnfinished(t *testing.T) (h *liveHost, web string) {
	t.Helper()
	h = newLiveHost(t)
	ctx := t.Context()
	_, err := h.Prepare(ctx, "ns/1/web", "")
	require.NoError(t, err)
	web, err = h.VolumeOf(ctx, "ns", "web")
	require.NoError(t, err)
	var taken live.Moment
	h.other(func(layers *live.Layers, _ cowcommon.Backend) {
		taken, err = layers.Snapshot(ctx, web, "one", live.SnapshotOptions{})
		require.NoError(t, err)
	})
	// As on a filesystem that cannot exchange names: between the two renames.
	former := taken.Volume[:len(taken.Volume)-1] + map[bool]string{true: "b", false: "a"}[taken.Volume[len(taken.Volume)-1] == 'a']
	require.NoError(t, h.restart(func(b cowcommon.Backend) {
		v, err := b.Stat(ctx, web)
		require.NoError(t, err)
		record, err := json.Marshal(map[string]any{"version": 1, "volume": former, "layer": web, "name": "before-rollback", "time": time.Now(), "replaced": v.Created})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(h.dir, "pending", former+".json"), record, 0o600))
		require.NoError(t, b.Clone(ctx, former+".new", taken.Volume, cowcommon.VolumeOptions{}))
		require.NoError(t, cowcommon.Rename(ctx, b, web, former))
		lock, err := os.Open(filepath.Join(h.dir, ".lock"))
		require.NoError(t, err)
		require.NoError(t, flock.Shared(ctx, lock))
		h.atWork = lock
	}))
	require.NotContains(t, h.names(), web)
	return h, web
}

// TestRemoveUnfinished: a snapshot is removed while its volume has no name. The volume is destroyed when it can have its name
// again, and is never lost.
func TestRemoveUnfinished(t *testing.T) {
	for name, meanwhile := range map[string]func(h *liveHost){
		"none":  func(*liveHost) {},
		"start": func(h *liveHost) { require.NoError(h.t, h.restart(nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			h, web := newUnfinished(t)
			require.NoError(t, h.Remove(t.Context(), "ns/1/web"))
			meanwhile(h)
			require.NoError(t, h.Cleanup(t.Context()))
			h.prepare("settles", "") // and then forgets the volumes that are destroyed
			h.prepare("writes it down", "")
			assert.Contains(t, h.ledger(doomed), web)
			require.NoError(t, h.atWork.Close())
			require.NoError(t, h.Cleanup(t.Context()))
			assert.Len(t, h.names(), 2, "%v", h.names())
			require.NoError(t, h.restart(nil))
			assert.Empty(t, h.Lost())
		})
	}
}

// endsAt is a Backend during whose first call of a kind another program ends a step. The call has the result of before that.
type endsAt struct {
	cowcommon.Backend
	call string
	end  func()
}

func (b endsAt) Unwrap() cowcommon.Backend { return b.Backend }

func (b endsAt) endIf(call string) {
	if b.call == call {
		b.end()
	}
}

func (b endsAt) Volumes(ctx context.Context) iter.Seq2[cowcommon.Volume, error] {
	return func(yield func(cowcommon.Volume, error) bool) {
		var volumes []cowcommon.Volume
		for v, err := range b.Backend.Volumes(ctx) {
			if err != nil {
				yield(v, err)
				return
			}
			volumes = append(volumes, v)
		}
		b.endIf("list")
		for _, v := range volumes {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func (b endsAt) Remove(ctx context.Context, name string) error {
	err := b.Backend.Remove(ctx, name)
	b.endIf("remove")
	return err
}

func (b endsAt) MountSpec(ctx context.Context, name string, readOnly bool) (spec cowcommon.MountSpec, err error) {
	mounter, ok := cowcommon.As[cowcommon.SpecMounter](b.Backend)
	if !ok {
		return spec, errdefs.ErrNotImplemented
	}
	spec, err = mounter.MountSpec(ctx, name, readOnly)
	b.endIf("mount")
	return spec, err
}

func (b endsAt) CheckMountSpec() error { return nil }

// openEnding opens the snapshotter over an endsAt whose step is that of newUnfinished.
func (h *liveHost) openEnding(call string) { h.openEndingAt(call, 1) }

// openEndingAt is openEnding for the call of that number.
func (h *liveHost) openEndingAt(call string, number int) {
	h.t.Helper()
	require.NoError(h.t, h.Close())
	backend := h.ending(call, number)
	s, err := New(context.WithoutCancel(h.t.Context()), filepath.Join(h.mnt, "snapshotter"), backend, h.opts)
	require.NoError(h.t, err)
	h.Snapshotter = s
}

func (h *liveHost) ending(call string, number int) cowcommon.Backend {
	h.t.Helper()
	backend := h.openBackend()
	h.opts.Layers = live.New(backend, h.dir, h.opts.Logger)
	end := sync.OnceFunc(func() {
		require.NoError(h.t, h.atWork.Close())
		h.other(func(layers *live.Layers, _ cowcommon.Backend) { require.NoError(h.t, layers.Recover(h.t.Context())) })
	})
	return endsAt{backend, call, func() {
		if number--; number <= 0 {
			end()
		}
	}}
}

// TestEndsDuringStart: a start lists the volumes while a volume has no name, and gets to the records when it has its name again. The
// snapshot stays.
func TestEndsDuringStart(t *testing.T) {
	h, web := newUnfinished(t)
	h.openEnding("list")
	_, err := h.Mounts(t.Context(), "ns/1/web")
	require.NoError(t, err)
	assert.Contains(t, h.names(), web)
	assert.Empty(t, h.ledger(gone))
	assert.Empty(t, h.Lost())
}

// TestEndsDuringRepair: the same with damaged metadata, whether or not the volume has its name again in time.
func TestEndsDuringRepair(t *testing.T) {
	for _, call := range []string{"list", "never"} {
		t.Run(call, func(t *testing.T) {
			h, web := newUnfinished(t)
			for i := range 40 {
				h.prepare(fmt.Sprintf("other-%02d", i), "")
			}
			other := h.volume("other-39")
			require.NoError(t, h.Close())
			h.overwrite(h.pagesWith(other)...)
			backend := h.ending(call, 1)
			done, err := Repair(t.Context(), filepath.Join(h.mnt, "snapshotter"), backend, h.opts)
			require.NoError(t, err)
			require.NoError(t, backend.Close())
			require.NotNil(t, done)
			if call == "never" {
				require.NoError(t, h.atWork.Close())
			}
			require.NoError(t, h.openAgain(nil))
			assert.Equal(t, web, h.volume("ns/1/web"))
		})
	}
}

// TestEndsDuringMount: the other program ends the rollback of a volume while somebody mounts that, at once or a little later.
func TestEndsDuringMount(t *testing.T) {
	for _, number := range []int{1, 6} {
		h, _ := newUnfinished(t)
		h.openEndingAt("mount", number)
		_, err := h.Mounts(t.Context(), "ns/1/web")
		require.NoError(t, err)
	}
}

// TestEndsDuringCleanup: a doomed volume gets its name back just after an attempt to destroy it. It is not lost: the next Cleanup
// destroys it.
func TestEndsDuringCleanup(t *testing.T) {
	h, web := newUnfinished(t)
	require.NoError(t, h.Remove(t.Context(), "ns/1/web"))
	h.openEnding("remove")
	assert.Contains(t, h.names(), web)
	h.prepare("settles", "") // and then forgets the volumes that are destroyed
	h.prepare("writes it down", "")
	require.NoError(t, h.Cleanup(t.Context()))
	assert.NotContains(t, h.names(), web)
	require.NoError(t, h.restart(nil))
	assert.Empty(t, h.Lost())
}

// TestUnfinishedThaw: a start finds a thaw whose clone has no name at the moment. The snapshot keeps the clone.
func TestUnfinishedThaw(t *testing.T) {
	h, web := newUnfinished(t)
	ctx := t.Context()
	sealed := newVolumeName(snapshotPrefix, "ns/1/web")
	require.NoError(t, h.change(ctx, func(_ context.Context, tx *bolt.Tx) error { return thawing.put(tx, web, sealed) }))
	require.NoError(t, h.restart(func(b cowcommon.Backend) {
		require.NoError(t, b.Create(ctx, sealed, cowcommon.VolumeOptions{}))
		require.NoError(t, cowcommon.Seal(ctx, b, sealed))
	}))
	got, err := h.VolumeOf(ctx, "ns", "web")
	require.NoError(t, err)
	assert.Equal(t, web, got)
	assert.NotContains(t, h.ledger(doomed), web)
	require.NoError(t, h.atWork.Close())
}

// TestThawWithSnapshots: a container whose volume was sealed for a commit goes on in another. Its snapshots go, and the log names
// them.
func TestThawWithSnapshots(t *testing.T) {
	h, ctx := newLiveHost(t), t.Context()
	h.prepare("ns/1/web", "")
	web := h.volume("ns/1/web")
	h.other(func(layers *live.Layers, _ cowcommon.Backend) {
		_, err := layers.Snapshot(ctx, web, "precious", live.SnapshotOptions{})
		require.NoError(t, err)
	})
	require.NoError(t, h.restart(func(b cowcommon.Backend) { require.NoError(t, cowcommon.Seal(ctx, b, web)) }))
	assert.Equal(t, []string{h.volume("ns/1/web")}, h.names())
	assert.NotEqual(t, web, h.volume("ns/1/web"))
	assert.Contains(t, h.log.String(), "snapshots=[precious]")
}

// TestRestoreAfterRollback: a lost volume that was rolled back gets its image as its parent, and so it does by Repair.
func TestRestoreAfterRollback(t *testing.T) {
	h, ctx := newLiveHost(t), t.Context()
	_, err := h.Prepare(ctx, "ns/1/layer", "")
	require.NoError(t, err)
	require.NoError(t, h.Commit(ctx, "ns/2/image", "ns/1/layer"))
	_, err = h.Prepare(ctx, "ns/3/web", "ns/2/image")
	require.NoError(t, err)
	web, err := h.VolumeOf(ctx, "ns", "web")
	require.NoError(t, err)
	image, err := h.VolumeOf(ctx, "ns", "image")
	require.NoError(t, err)
	h.other(func(layers *live.Layers, _ cowcommon.Backend) {
		_, err := layers.Snapshot(ctx, web, "one", live.SnapshotOptions{})
		require.NoError(t, err)
		_, err = layers.Rollback(ctx, web, "one", live.RollbackOptions{})
		require.NoError(t, err)
	})
	require.NoError(t, h.restart(func(cowcommon.Backend) {
		require.NoError(t, os.Remove(filepath.Join(h.mnt, "snapshotter", metadataName)))
	}))
	require.Len(t, h.Lost(), 2)
	require.NoError(t, h.Restore(ctx, image, "ns/2/image"))
	require.NoError(t, h.Restore(ctx, web, ""))
	info, err := h.Stat(ctx, "ns/3/web")
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindActive, info.Kind)
	assert.Equal(t, "ns/2/image", info.Parent)

	require.NoError(t, h.Close())
	h.overwrite(h.pagesWith("ns/3/web")...)
	require.NotNil(t, h.repair())
	require.NoError(t, h.openAgain(nil))
	info, err = h.Stat(ctx, "ns/3/web")
	require.NoError(t, err)
	assert.NotEmpty(t, info.Parent)
	parent, err := h.Stat(ctx, info.Parent)
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindCommitted, parent.Kind)
}
