package live_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// TestFull: snapshots, layers and their moments are removed on a full filesystem.
func TestFull(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) { testFull(t, newHome(t)) })
}

// testFull is TestFull in one home, which has a small filesystem of its own.
func testFull(t *testing.T, h home) {
	ctx := t.Context()
	h.create("web")
	for _, name := range []string{"one", "two"} {
		h.put("web", "file", name)
		_, err := h.Snapshot(ctx, "web", name, live.SnapshotOptions{})
		require.NoError(t, err)
	}
	_, err := h.Fork(ctx, "web", []string{"a", "b"}, live.ForkOptions{})
	require.NoError(t, err)
	mnt := filepath.Dir(h.records)
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)
	require.NoError(t, h.RemoveSnapshot(ctx, "web", "two"))
	require.NoError(t, h.backend.Remove(ctx, "a"))
	h.assertClean(2, "b", "web")
	require.NoError(t, h.backend.Remove(ctx, "web"))
	require.NoError(t, h.backend.Remove(ctx, "b"))
	h.assertClean(0)
}

// stuck is a Backend that cannot remove one volume.
type stuck struct {
	failingNative
	volume string
}

func (s stuck) Remove(ctx context.Context, name string) error {
	if name == s.volume {
		return errCrash
	}
	return s.failingNative.Remove(ctx, name)
}

// TestSweepGoesOn: a moment that cannot be removed keeps no other from being removed.
func TestSweepGoesOn(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	first, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	second, err := h.Snapshot(ctx, "web", "two", live.SnapshotOptions{})
	require.NoError(t, err)
	require.NoError(t, h.backend.Remove(ctx, "web"))
	l := h.over(stuck{failingNative{&failing{Backend: h.backend, left: -1}}, first.Volume})
	require.ErrorIs(t, l.Sweep(ctx), errCrash)
	_, err = h.backend.Stat(ctx, second.Volume)
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	h.assertClean(0)
}
