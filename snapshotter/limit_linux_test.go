package snapshotter

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func limitUpdate(key, bytes string) snapshots.Info {
	return snapshots.Info{Name: key, Labels: map[string]string{snapshots.LabelSnapshotMaxSize: bytes}}
}

// TestUpdateBelowHeld: a limit below the present size is refused with that size. SetLimit sets it all the same.
func TestUpdateBelowHeld(t *testing.T) {
	h := testUpdateBelowHeld(t, onBtrfs())
	require.NoError(t, h.SetLimit(t.Context(), heldKey, 4*mib))
	assert.EqualValues(t, 4*mib, h.currentLimit(heldKey))
	info, err := h.Stat(t.Context(), heldKey)
	require.NoError(t, err)
	assert.Equal(t, "4194304", info.Labels[snapshots.LabelSnapshotMaxSize])
	h.in(heldKey, func(dir string) { require.ErrorIs(t, fill(filepath.Join(dir, "more"), 8*mib), unix.EDQUOT) })

	require.ErrorIs(t, h.SetLimit(t.Context(), "base", 4*mib), errdefs.ErrFailedPrecondition)
	require.ErrorIs(t, h.SetLimit(t.Context(), "none", 4*mib), errdefs.ErrNotFound)
	require.ErrorIs(t, h.SetLimit(t.Context(), heldKey, 0), errdefs.ErrInvalidArgument)
}

// TestLimitFilled limits a snapshot to less than it holds, through a socket and by the names that containerd's clients know.
// An Update with the same limit is not refused.
func TestLimitFilled(t *testing.T) {
	h := testUpdateBelowHeld(t, onBtrfs())
	conn, stop, err := serve(t.TempDir(), h.Snapshotter, nil)
	require.NoError(t, err)
	t.Cleanup(stop)
	offers := OffersClient{conn}
	require.NoError(t, offers.LimitFilled(t.Context(), "k8s.io", "web", 4*mib))
	assert.EqualValues(t, 4*mib, h.currentLimit(heldKey))
	_, err = h.Update(t.Context(), limitUpdate(heldKey, "4194304"), "labels."+snapshots.LabelSnapshotMaxSize)
	require.NoError(t, err)

	require.ErrorIs(t, offers.LimitFilled(t.Context(), "moby", "web", 4*mib), errdefs.ErrNotFound)
	require.ErrorIs(t, offers.LimitFilled(t.Context(), "k8s.io", "web", 0), errdefs.ErrInvalidArgument)
}

const heldKey = "k8s.io/1/web"

// testUpdateBelowHeld leaves a snapshot that holds 8 MiB of at most 24.
func testUpdateBelowHeld(t *testing.T, fs filesystem) *host {
	t.Helper()
	h := newHostOn(t, fs, Options{})
	h.image("base")
	h.prepare(heldKey, "base", label(snapshots.LabelSnapshotMaxSize, "16777216"))
	h.in(heldKey, func(dir string) {
		require.NoError(t, fill(filepath.Join(dir, "data"), 8*mib))
		syncFilesystem(t, dir)
	})
	_, err := h.Update(t.Context(), limitUpdate(heldKey, "4194304"), "labels."+snapshots.LabelSnapshotMaxSize)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "a limit of 4MiB is less than the 8")
	assert.EqualValues(t, 16*mib, h.currentLimit(heldKey))
	_, err = h.Update(t.Context(), limitUpdate(heldKey, "25165824"), "labels."+snapshots.LabelSnapshotMaxSize)
	require.NoError(t, err)
	assert.EqualValues(t, 24*mib, h.currentLimit(heldKey))
	return h
}

// currentLimit is the limit of a snapshot, as the filesystem tells it.
func (h *host) currentLimit(key string) uint64 {
	h.t.Helper()
	v, err := h.backend.Stat(h.t.Context(), h.volume(key))
	require.NoError(h.t, err)
	return v.Limit.Bytes
}

func syncFilesystem(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	require.NoError(t, unix.Syncfs(int(f.Fd())))
	require.NoError(t, f.Close())
}

// TestKey: a client's key is found in its namespace alone.
func TestKey(t *testing.T) {
	h := newHost(t, Options{})
	_, err := h.Key(t.Context(), "moby", "web")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	for _, key := range []string{"k8s.io/1/web", "moby/2/web", "moby/3/a/web", "moby/4/b web", "moby/x/other", "moby0/5/other"} {
		h.prepare(key, "")
	}
	for own, want := range map[string]string{"web": "moby/2/web", "a/web": "moby/3/a/web", "b web": "moby/4/b web"} {
		key, err := h.Key(t.Context(), "moby", own)
		require.NoError(t, err)
		assert.Equal(t, want, key)
	}
	for _, own := range []string{"", "eb", "x/other", "other", "2/web"} {
		_, err := h.Key(t.Context(), "moby", own)
		require.ErrorIs(t, err, errdefs.ErrNotFound, own)
	}
	_, err = h.Key(t.Context(), "", "moby/2/web")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}
