package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// The snapshotter leaves foreign volumes alone.
func TestRecoverForeignVolumes(t *testing.T) {
	h := newHost(t, Options{})
	foreign := []string{"layer", "s-short", "s-" + "abcdefghijklmnopqrstuvwxyz", "x-ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
	require.NoError(t, h.restart(func(b cowcommon.Backend) {
		for _, name := range foreign {
			require.NoError(t, b.Create(t.Context(), name, cowcommon.VolumeOptions{}))
		}
	}))
	assert.Empty(t, h.Lost())
	for _, name := range foreign {
		assert.Contains(t, h.volumes(), name)
		assert.Contains(t, h.log.String(), name)
	}
}

// A crash leaves the operations of the process in any state. Each test stops the snapshotter there, and starts it
// again.
func TestRecoverUnfinished(t *testing.T) {
	ctx := t.Context()
	h := newHost(t, Options{})
	h.image("image")
	h.prepare("active", "image")
	before := h.state()
	prepared := func(key string) record {
		made, err := h.recordCreate(ctx, snapshots.KindActive, key, "image", newVolumeName(snapshotPrefix, key), nil)
		require.NoError(t, err)
		return made
	}
	for name, crash := range map[string]func(t *testing.T){
		"prepare, before the volume is made": func(*testing.T) { prepared("new"); prepared("new2") },
		"copy for a commit, not made": func(t *testing.T) {
			require.NoError(t, h.recordCopy(ctx, newVolumeName(snapshotPrefix, "new")))
		},
		"copy for a commit, made": func(t *testing.T) {
			copied := newVolumeName(snapshotPrefix, "new")
			require.NoError(t, h.recordCopy(ctx, copied))
			require.NoError(t, h.backend.Clone(ctx, copied, h.volume("image"), cowcommon.VolumeOptions{}))
		},
		"removed, not destroyed": func(t *testing.T) {
			h.prepare("new", "image")
			require.NoError(t, h.Remove(ctx, "new"))
		},
		"removed, destroyed": func(t *testing.T) {
			h.prepare("new", "image")
			require.NoError(t, h.Remove(ctx, "new"))
			require.NoError(t, h.Cleanup(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			crash(t)
			require.NoError(t, h.crash())
			assert.Equal(t, before, h.state())
			assert.Empty(t, h.Lost())
			assert.Empty(t, h.ledger(gone))
		})
	}

	t.Run("prepare, volume made", func(t *testing.T) {
		made := prepared("new")
		require.NoError(t, h.backend.Clone(ctx, made.volume, made.parentVolume, cowcommon.VolumeOptions{}))
		require.NoError(t, h.crash())
		h.write("new", "file", nil) // whole and writable
		require.NoError(t, h.Remove(ctx, "new"))
		require.NoError(t, h.Cleanup(ctx))
		assert.Equal(t, before, h.state())
	})
	for name, crash := range map[string]func(t *testing.T, key, volume string){
		"thaw, not begun": func(*testing.T, string, string) {},
		"thaw, before the clone": func(t *testing.T, key, volume string) {
			_, _, err := h.beginThaw(ctx, key, volume, newVolumeName(snapshotPrefix, key))
			require.NoError(t, err)
		},
		"thaw, after the clone": func(t *testing.T, key, volume string) {
			clone := newVolumeName(snapshotPrefix, key)
			_, _, err := h.beginThaw(ctx, key, volume, clone)
			require.NoError(t, err)
			require.NoError(t, h.backend.Clone(ctx, clone, volume, cowcommon.VolumeOptions{}))
		},
		"copy for a commit, made when the volume was no longer in use": func(t *testing.T, _, volume string) {
			copied := newVolumeName(snapshotPrefix, "new")
			require.NoError(t, h.recordCopy(ctx, copied))
			require.NoError(t, h.backend.Clone(ctx, copied, volume, cowcommon.VolumeOptions{}))
		},
		"copy given up, and thaw after the clone": func(t *testing.T, key, volume string) {
			copied, clone := newVolumeName(snapshotPrefix, "new"), newVolumeName(snapshotPrefix, key)
			require.NoError(t, h.recordCopy(ctx, copied))
			require.NoError(t, h.backend.Clone(ctx, copied, volume, cowcommon.VolumeOptions{}))
			require.NoError(t, h.change(ctx, func(_ context.Context, tx *bolt.Tx) error {
				return errors.Join(copies.del(tx, copied), doomed.put(tx, copied, ""))
			}))
			_, _, err := h.beginThaw(ctx, key, volume, clone)
			require.NoError(t, err)
			require.NoError(t, h.backend.Clone(ctx, clone, volume, cowcommon.VolumeOptions{}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.prepare("frozen", "image")
			h.write("frozen", "content", []byte("text"))
			require.NoError(t, cowcommon.Seal(ctx, h.backend, h.volume("frozen")))
			crash(t, "frozen", h.volume("frozen"))
			require.NoError(t, h.crash())
			assert.Empty(t, h.Lost())
			assert.Equal(t, "text", h.content("frozen", "content"))
			h.write("frozen", "content", nil)
			assert.Len(t, h.volumes(), 3)
			require.NoError(t, h.Remove(ctx, "frozen"))
			require.NoError(t, h.Cleanup(ctx))
			assert.Equal(t, before, h.state())
			h.prepare("later", "image") // and so destroyed volumes stay destroyed
			require.NoError(t, h.Remove(ctx, "later"))
			require.NoError(t, h.restart(nil))
			for _, l := range []ledger{making, copies, thawing} {
				assert.Empty(t, h.ledger(l), l)
			}
		})
	}
}

// A crash while a snapshot was being committed leaves it active, and it can be written to again.
func TestRecoverInterruptedCommit(t *testing.T) {
	h := testRecoverInterruptedCommit(t, onBtrfs(testfs.WithSimpleQuota()))
	assert.Equal(t, []string{h.volume("image")}, h.volumes())
}

func testRecoverInterruptedCommit(t *testing.T, fs filesystem) *host {
	h := newHostOn(t, fs, Options{DefaultLimit: quota.Limit{Bytes: 16 * mib}})
	h.prepare("active", "")
	h.write("active", "file", []byte("content"))
	volume := h.volume("active")
	require.NoError(t, h.restart(func(b cowcommon.Backend) { require.NoError(t, cowcommon.Seal(t.Context(), b, volume)) }))
	assert.NotEqual(t, volume, h.volume("active"), "a sealed volume cannot be made writable")
	assert.Equal(t, "content", h.content("active", "file"))
	h.write("active", "more", nil)

	v, err := h.backend.Stat(t.Context(), h.volume("active"))
	require.NoError(t, err)
	assert.EqualValues(t, 16*mib, v.Limit.Bytes)
	h.commit("image", "active")
	return h
}

// Snapshots whose volume somebody has destroyed go, unless others were made from them.
func TestRecoverLostVolumes(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	h.image("lost-leaf")
	h.image("lost-parent")
	h.prepare("kept", "lost-parent")
	h.prepare("lost-active", "lost-leaf")
	h.view("lost-view", "lost-leaf")
	var volumes []string
	for _, key := range []string{"lost-leaf", "lost-parent", "lost-active"} {
		volumes = append(volumes, h.volume(key))
	}
	require.NoError(t, h.restart(func(b cowcommon.Backend) {
		for _, volume := range volumes {
			require.NoError(t, b.Remove(t.Context(), volume))
		}
	}))
	assert.Equal(t, []string{"image", "kept", "lost-parent"}, h.keys())
	_, err := h.Prepare(t.Context(), "new", "lost-parent")
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	assert.FileExists(t, filepath.Join(h.dir("kept"), "file"))
	require.NoError(t, h.Remove(t.Context(), "kept"))
	require.NoError(t, h.Remove(t.Context(), "lost-parent"))
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Len(t, h.volumes(), 1)
}

// Where nothing is that should be, it is the wrong place, and the metadata stays as it is.
func TestRecoverWrongBackend(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	h.prepare("active", "image")
	before := h.state()
	require.NoError(t, h.Close())

	volumes := filepath.Join(h.mnt, "volumes")
	require.NoError(t, os.Rename(volumes, volumes+"-away"))
	assert.ErrorIs(t, h.open(), errdefs.ErrFailedPrecondition)
	require.NoError(t, os.Rename(volumes, volumes+"-wrong"))
	require.NoError(t, os.Rename(volumes+"-away", volumes))
	require.NoError(t, h.open())
	assert.Equal(t, before, h.state())
}

func TestOpenTwice(t *testing.T) {
	h := newHost(t, Options{})
	first := h.Snapshotter
	assert.ErrorIs(t, h.open(), errdefs.ErrUnavailable)
	assert.Same(t, first, h.Snapshotter)
	h.prepare("active", "")
}

// A power cut may bring back a volume that was destroyed. It is destroyed again, until it is certain that none does.
func TestDestroyedComesBack(t *testing.T) {
	h := newHost(t, Options{})
	ctx := t.Context()
	h.image("image")
	h.prepare("removed", "image")
	volume, hidden := h.volume("removed"), "hidden"
	require.NoError(t, h.restart(func(b cowcommon.Backend) {
		require.NoError(t, b.Clone(ctx, hidden, volume, cowcommon.VolumeOptions{}))
	}))
	require.NoError(t, h.Remove(ctx, "removed"))
	require.NoError(t, h.Cleanup(ctx))
	_, err := h.Update(ctx, snapshots.Info{Name: "image", Labels: map[string]string{"any": "change"}})
	require.NoError(t, err)
	require.NoError(t, h.crash())
	require.NoError(t, h.restart(func(b cowcommon.Backend) { require.NoError(t, cowcommon.Rename(ctx, b, hidden, volume)) }))
	assert.Empty(t, h.Lost())
	assert.NotContains(t, h.volumes(), volume)

	h.prepare("new", "image") // earlier destroyed volumes are destroyed for good
	_, err = h.Update(ctx, snapshots.Info{Name: "image"})
	require.NoError(t, err)
	assert.Empty(t, h.ledger(doomed))
}
