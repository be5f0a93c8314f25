package snapshotter

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestUpdateLimit: another value of the label changes the limit of an active snapshot, and nothing else does.
func TestUpdateLimit(t *testing.T) {
	h := newHost(t, Options{})
	h.image("base")
	const key, unpack = "moby/1/web", "moby/2/extract-1 sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	h.prepare(key, "base", label(snapshots.LabelSnapshotMaxSize, "1048576"))
	h.prepare(unpack, "base")
	for _, c := range []struct {
		key    string
		labels map[string]string
		paths  []string
		want   uint64
	}{
		{key, map[string]string{snapshots.LabelSnapshotMaxSize: "4194304"}, []string{"labels.other"}, 1 << 20},
		{key, map[string]string{snapshots.LabelSnapshotMaxSize: "4194304"}, []string{"labels"}, 4 << 20},
		{key, map[string]string{snapshots.LabelSnapshotMaxSize: "2097152"}, []string{"labels." + snapshots.LabelSnapshotMaxSize}, 2 << 20},
		{key, nil, nil, 2 << 20},
		{key, map[string]string{snapshots.LabelSnapshotMaxSize: "3145728"}, nil, 3 << 20},
		{unpack, map[string]string{snapshots.LabelSnapshotMaxSize: "3145728"}, nil, 0},
		{"base", map[string]string{snapshots.LabelSnapshotMaxSize: "3145728"}, nil, 0},
	} {
		_, err := h.Update(t.Context(), snapshots.Info{Name: c.key, Labels: c.labels}, c.paths...)
		require.NoError(t, err)
		v, err := h.backend.Stat(t.Context(), h.volume(c.key))
		require.NoError(t, err)
		assert.Equal(t, c.want, v.Limit.Bytes, "%v %v", c.labels, c.paths)
	}
	_, err := h.Update(t.Context(), snapshots.Info{Name: key, Labels: map[string]string{snapshots.LabelSnapshotMaxSize: "0"}})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}
