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
	h := newHost(t, Options{})
	h.image("base")
	const key = "k8s.io/1/web"
	h.prepare(key, "base", label(snapshots.LabelSnapshotMaxSize, "16777216"))
	file := filepath.Join(h.dir(key), "data")
	h.write(key, "data", make([]byte, 8<<20))
	syncFile(t, file)

	_, err := h.Update(t.Context(), limitUpdate(key, "4194304"), "labels."+snapshots.LabelSnapshotMaxSize)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "a limit of 4MiB is less than the 8")
	v, err := h.backend.Stat(t.Context(), h.volume(key))
	require.NoError(t, err)
	assert.EqualValues(t, 16<<20, v.Limit.Bytes)

	require.NoError(t, h.SetLimit(t.Context(), key, 4<<20))
	v, err = h.backend.Stat(t.Context(), h.volume(key))
	require.NoError(t, err)
	assert.EqualValues(t, 4<<20, v.Limit.Bytes)
	info, err := h.Stat(t.Context(), key)
	require.NoError(t, err)
	assert.Equal(t, "4194304", info.Labels[snapshots.LabelSnapshotMaxSize])
	require.ErrorIs(t, os.WriteFile(file+"2", make([]byte, 8<<20), 0o600), unix.EDQUOT)

	require.ErrorIs(t, h.SetLimit(t.Context(), "base", 4<<20), errdefs.ErrFailedPrecondition)
	require.ErrorIs(t, h.SetLimit(t.Context(), "none", 4<<20), errdefs.ErrNotFound)
	require.ErrorIs(t, h.SetLimit(t.Context(), key, 0), errdefs.ErrInvalidArgument)
}

func syncFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
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
