package snapshotter

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// A volume that was made before a crash, and never named, is destroyed. What the snapshotter did not make is not.
func TestRecoverUnnamedVolumes(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	h.prepare("active", "image")
	before := h.state()
	volume := h.volume("image")

	foreign := []string{"layer", "s-short", "s-" + "abcdefghijklmnopqrstuvwxyz", "x-ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
	require.NoError(t, h.restart(func(b cowcommon.Backend) {
		require.NoError(t, b.Create(t.Context(), newVolumeName(snapshotPrefix), cowcommon.VolumeOptions{}))
		require.NoError(t, b.Create(t.Context(), newVolumeName(emptyViewPrefix), cowcommon.VolumeOptions{}))
		require.NoError(t, b.Clone(t.Context(), newVolumeName(snapshotPrefix), volume, cowcommon.VolumeOptions{}))
		for _, name := range foreign {
			require.NoError(t, b.Create(t.Context(), name, cowcommon.VolumeOptions{}))
		}
	}))
	for _, name := range foreign {
		assert.Contains(t, h.volumes(), name)
		assert.Contains(t, h.log.String(), name)
		require.NoError(t, h.backend.Remove(t.Context(), name))
	}
	assert.Equal(t, before, h.state())
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
	require.NoError(t, h.restart(func(b cowcommon.Backend) { require.NoError(t, b.Seal(t.Context(), volume)) }))
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
