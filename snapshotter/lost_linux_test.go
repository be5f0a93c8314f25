package snapshotter

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
)

// metadata is the path of the metadata.
func (h *host) metadata() string { return filepath.Join(h.mnt, "snapshotter", metadataName) }

// rollBack restores the metadata from its copy.
func (h *host) rollBack(copied []byte) {
	h.t.Helper()
	require.NoError(h.t, os.WriteFile(h.metadata(), copied, 0o600))
}

func (h *host) copyMetadata() []byte {
	h.t.Helper()
	copied, err := os.ReadFile(h.metadata())
	require.NoError(h.t, err)
	return copied
}

func (h *host) lostVolumes() map[string]Lost {
	lost := make(map[string]Lost)
	for _, l := range h.Lost() {
		lost[l.Volume] = l
	}
	return lost
}

const container = "k8s.io/12/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestLostMetadata: whatever becomes of the metadata, no volume goes that it does not know.
func TestLostMetadata(t *testing.T) { testLostMetadata(t, onBtrfs()) }

func testLostMetadata(t *testing.T, fs filesystem) {
	for name, lose := range map[string]func(h *host){
		"deleted": func(h *host) { require.NoError(h.t, os.Remove(h.metadata())) },
		"empty":   func(h *host) { require.NoError(h.t, os.Truncate(h.metadata(), 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostOn(t, fs, Options{})
			h.image("image")
			h.prepare(container, "image")
			h.write(container, "data", []byte("precious"))
			image, active := h.volume("image"), h.volume(container)
			before := h.volumes()
			require.NoError(t, h.restart(func(cowcommon.Backend) { lose(h) }))
			require.Equal(t, before, h.volumes())
			assert.Empty(t, h.keys())
			assert.Contains(t, h.log.String(), active)

			lost := h.lostVolumes()
			assert.Equal(t, container, lost[active].Key)
			assert.Equal(t, image, lost[active].Parent)
			assert.Empty(t, lost[image].Key, "the name to which it was committed is in no volume")
			assert.Equal(t, "image-unpack", lost[image].Made)
			assert.True(t, lost[image].Sealed)

			// A lost volume stays lost, and goes neither with Cleanup nor with another start.
			require.NoError(t, h.Cleanup(t.Context()))
			require.NoError(t, h.restart(nil))
			require.Equal(t, before, h.volumes())

			assert.ErrorIs(t, h.Restore(t.Context(), image, ""), errdefs.ErrInvalidArgument)
			require.NoError(t, h.Restore(t.Context(), image, "image"))
			assert.ErrorIs(t, h.Restore(t.Context(), active, "image"), errdefs.ErrAlreadyExists)
			require.NoError(t, h.Restore(t.Context(), active, ""))
			assert.Empty(t, h.Lost())
			info, err := h.Stat(t.Context(), container)
			require.NoError(t, err)
			assert.Equal(t, snapshots.KindActive, info.Kind)
			assert.Equal(t, "image", info.Parent)
			assert.Equal(t, "precious", h.content(container, "data"))
			assert.ErrorIs(t, h.Remove(t.Context(), "image"), errdefs.ErrFailedPrecondition)
			h.commit("new", container)
			require.NoError(t, h.restart(nil))
			assert.Equal(t, []string{"image", "new"}, h.keys())
		})
	}
}

// TestLostDecidedTwice: somebody decides about a lost volume while another does. The first decision holds, and the other one fails.
func TestLostDecidedTwice(t *testing.T) {
	restore := func(key string) func(h *host, volume string) error {
		return func(h *host, volume string) error { return h.Restore(h.t.Context(), volume, key) }
	}
	discard := func(h *host, volume string) error { return h.Discard(h.t.Context(), volume) }
	for name, c := range map[string]struct {
		first, second func(h *host, volume string) error
		keys          []string
	}{
		"restored twice":           {restore("first"), restore("second"), []string{"first"}},
		"restored, then discarded": {restore("first"), discard, []string{"first"}},
		"discarded, then restored": {discard, restore("second"), []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("ended", func(t *testing.T) { testLostDecidedTwice(t, c.first, c.second, c.keys, false) })
			t.Run("still listed", func(t *testing.T) { testLostDecidedTwice(t, c.first, c.second, c.keys, true) })
		})
	}
}

// testLostDecidedTwice has the first decide between two attempts of the second. listed: the first has not come as far as to take the volume
// off the list.
func testLostDecidedTwice(t *testing.T, first, second func(h *host, volume string) error, keys []string, listed bool) {
	h := newHost(t, Options{})
	h.prepare("lost", "")
	h.write("lost", "data", []byte("precious"))
	volume := h.volume("lost")
	require.NoError(t, h.restart(func(cowcommon.Backend) { require.NoError(t, os.Remove(h.metadata())) }))
	lost := h.lostVolumes()
	h.commitTx = func(tx *bolt.Tx) error {
		h.commitTx = (*bolt.Tx).Commit
		require.NoError(t, tx.Rollback())
		require.NoError(t, first(h, volume))
		if listed {
			h.lost[volume] = lost[volume]
		}
		return unix.EIO
	}
	assert.ErrorIs(t, second(h, volume), errdefs.ErrNotFound)
	assert.Equal(t, keys, h.keys())
	for _, key := range keys {
		assert.Equal(t, "precious", h.content(key, "data"))
	}
}

// TestRolledBackMetadata: the metadata is older than the volumes. Snapshots that it names are as their volumes are.
// Volumes that it does not know are kept. Volumes that it lists as doomed are destroyed.
func TestRolledBackMetadata(t *testing.T) { testRolledBackMetadata(t, onBtrfs()) }

func testRolledBackMetadata(t *testing.T, fs filesystem) {
	h := newHostOn(t, fs, Options{})
	ctx := t.Context()
	h.image("image")
	h.prepare("old", "image")
	h.prepare("removed before", "image")
	require.NoError(t, h.Remove(ctx, "removed before"))
	h.prepare("removed later", "image")
	h.prepare("committed later", "image")
	dir, unmount := h.mountAt(h.prepare("copied later", "image"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data"), []byte("copied"), 0o644))
	require.NoError(t, h.forgetStale())
	copied := h.copyMetadata()

	h.write("old", "data", []byte("new"))
	require.NoError(t, h.Remove(ctx, "removed later"))
	h.commit("new image", "committed later")
	h.prepare(container, "new image")
	h.write(container, "data", []byte("precious"))
	h.commit("copy", "copied later") // it is mounted
	volumes := map[string]string{}
	for _, key := range []string{"old", "new image", container, "copy"} {
		volumes[key] = h.volume(key)
	}
	unmount()
	require.NoError(t, h.Cleanup(ctx))

	require.NoError(t, h.restart(func(cowcommon.Backend) { h.rollBack(copied) }))
	assert.Equal(t, "new", h.content("old", "data"))
	lost := h.lostVolumes()
	assert.Contains(t, lost, volumes[container])
	assert.Contains(t, lost, volumes["copy"])
	require.Contains(t, h.volumes(), volumes["new image"], "it is the parent of one that is lost")
	assert.Equal(t, []string{"committed later", "image", "old"}, h.keys(), "the volumes of others were destroyed")
	assert.Len(t, h.ledger(gone), 2)

	require.NoError(t, h.Restore(ctx, volumes[container], ""))
	assert.Equal(t, "precious", h.content(container, "data"))
	require.NoError(t, h.Discard(ctx, volumes["copy"]))
	assert.NotContains(t, h.volumes(), volumes["copy"])
	assert.ErrorIs(t, h.Discard(ctx, volumes["copy"]), errdefs.ErrNotFound)
	assert.ErrorIs(t, h.Discard(ctx, volumes["old"]), errdefs.ErrNotFound, "it is not lost")
}

// TestRolledBackAt: the metadata is that of any moment before. No volume that is named at the end is destroyed.
func TestRolledBackAt(t *testing.T) {
	h := newHost(t, Options{})
	ctx := t.Context()
	h.image("image")
	var copies [][]byte
	step := func(err error) {
		require.NoError(t, err)
		copies = append(copies, h.copyMetadata())
	}
	prepare := func(key string) error { _, err := h.Prepare(ctx, key, "image"); return err }
	step(prepare("a"))
	step(prepare("b"))
	step(h.Commit(ctx, "b-image", "b"))
	mounts, err := h.Mounts(ctx, "a")
	require.NoError(t, err)
	_, unmount := h.mountAt(mounts)
	step(h.Commit(ctx, "a-image", "a"))
	unmount()
	step(prepare("c"))
	step(h.Remove(ctx, "b-image"))
	step(h.Cleanup(ctx))
	step(prepare("d"))
	h.write("d", "data", []byte("precious"))
	kept := []string{h.volume("image"), h.volume("a-image"), h.volume("c"), h.volume("d")}
	last := h.copyMetadata()

	for i, copied := range copies {
		require.NoError(t, h.restart(func(cowcommon.Backend) { h.rollBack(copied) }))
		require.Subset(t, h.volumes(), kept, "rolled back to %d", i)
	}
	require.NoError(t, h.restart(func(cowcommon.Backend) { h.rollBack(last) }))
	assert.Equal(t, []string{"a-image", "c", "d", "image"}, h.keys(), "with its metadata all is back")
	assert.Empty(t, h.Lost())
	assert.Equal(t, "precious", h.content("d", "data"))
}

// TestRolledBackVolumes: the volumes are older than the metadata. The records of missing volumes are kept, and give
// them back when they exist again.
func TestRolledBackVolumes(t *testing.T) { testRolledBackVolumes(t, onBtrfs()) }

func testRolledBackVolumes(t *testing.T, fs filesystem) {
	h := newHostOn(t, fs, Options{})
	ctx := t.Context()
	h.image("image")
	h.prepare("kept", "image")
	h.prepare("other", "image", label("name", "value"))
	h.commit("missing", "other")
	volume, hidden := h.volume("missing"), "hidden"
	require.NoError(t, h.restart(func(b cowcommon.Backend) { require.NoError(t, cowcommon.Rename(ctx, b, volume, hidden)) }))
	assert.Equal(t, []string{"image", "kept"}, h.keys())
	require.NoError(t, h.restart(func(b cowcommon.Backend) { require.NoError(t, cowcommon.Rename(ctx, b, hidden, volume)) }))
	require.Len(t, h.Lost(), 1)
	assert.Equal(t, "missing", h.Lost()[0].Key)
	require.NoError(t, h.Restore(ctx, volume, ""))
	info, err := h.Stat(ctx, "missing")
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindCommitted, info.Kind)
	assert.Equal(t, "image", info.Parent)
	assert.Empty(t, h.Lost())
	assert.Empty(t, h.ledger(gone))
}

// TestOtherMetadata: the metadata of another home names nothing that is there.
func TestOtherMetadata(t *testing.T) { testOtherMetadata(t, onBtrfs()) }

func testOtherMetadata(t *testing.T, fs filesystem) {
	var foreign []byte
	t.Run("other", func(t *testing.T) {
		other := newHostOn(t, fs, Options{})
		other.image("image")
		other.prepare(container, "image")
		require.NoError(t, other.Close())
		foreign = other.copyMetadata()
	})
	h := newHostOn(t, fs, Options{})
	h.image("image")
	h.prepare(container, "image")
	before := h.volumes()
	require.NoError(t, h.Close())
	own := h.copyMetadata()
	h.rollBack(foreign)
	assert.ErrorIs(t, h.open(), errdefs.ErrFailedPrecondition)
	h.rollBack(own)
	require.NoError(t, h.open())
	assert.Equal(t, before, h.volumes())
	assert.Empty(t, h.Lost())
}

func TestKeyInVolumeName(t *testing.T) {
	for _, key := range []string{
		"a", container, "default/7/some name, with: odd=things", "ünï/cödé", "_", "a_", "..", strings.Repeat("k", 200),
		"default/12/extract-123456789-Ab_- sha256:" + strings.Repeat("0123456789abcdef", 4), strings.Repeat("/", 60),
	} {
		name := newVolumeName(snapshotPrefix, key)
		require.NoError(t, cowcommon.CheckID(name))
		assert.True(t, IsVolumeName(name), name)
		assert.LessOrEqual(t, len(name), 120)
		got, whole := KeyOfVolume(name)
		assert.True(t, strings.HasPrefix(key, got), "%q %q", key, got)
		if whole {
			assert.Equal(t, key, got)
		} else {
			assert.Greater(t, len(key), 28, "%q", key)
		}
	}
	_, whole := KeyOfVolume("s-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	assert.False(t, whole)
	for _, malformed := range []string{"s-ABCDEFGHIJKLMNOPQRSTUVWXYZ.", "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ._0", "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ.a_zz"} {
		_, whole := KeyOfVolume(malformed)
		assert.False(t, whole, malformed)
	}
}
