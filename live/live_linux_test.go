package live_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// TestFork forks a layer in use and removes layer and forks in each order.
func TestFork(t *testing.T) { eachHome(t, testFork) }

func testFork(t *testing.T, h home) {
	ctx := t.Context()
	h.create("web")
	h.put("web", "file", "then")
	var m live.Moment
	h.edit("web", func(string) {
		var err error
		m, err = h.Fork(ctx, "web", []string{"a", "b"}, live.ForkOptions{Fork: live.Fork{Labels: map[string]string{"task": "1"}}})
		require.NoError(t, err)
	})
	h.put("web", "file", "now")
	h.put("a", "file", "a")
	assert.Equal(t, "then", h.get("b", "file"))
	assert.Equal(t, "web", m.Layer)
	require.Len(t, m.Forks, 2)
	assert.Equal(t, map[string]string{"task": "1"}, m.Forks[1].Labels)

	for _, taken := range []string{"a", "web"} {
		_, err := h.Fork(ctx, "web", []string{"c", taken}, live.ForkOptions{})
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	}
	_, err := h.Fork(ctx, "none", []string{"c"}, live.ForkOptions{})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = h.Fork(ctx, "web", []string{m.Volume}, live.ForkOptions{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	h.assertClean(1, "a", "b", "web")

	require.NoError(t, h.backend.Remove(ctx, "web"))
	require.NoError(t, h.backend.Remove(ctx, "a"))
	h.assertClean(1, "b")
	assert.Equal(t, "then", h.get("b", "file"))
	require.NoError(t, h.backend.Remove(ctx, "b"))
	h.assertClean(0)
}

// TestForkExpires: a fork is removed when it has expired, but not while it is in use, nor a later layer of that name.
func TestForkExpires(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	_, err := h.Fork(ctx, "web", []string{"old", "used", "again"}, live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(-time.Second)}})
	require.NoError(t, err)
	_, err = h.Fork(ctx, "web", []string{"young"}, live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(time.Hour)}})
	require.NoError(t, err)
	require.NoError(t, h.backend.Remove(ctx, "again"))
	h.create("again")
	h.edit("used", func(string) { h.assertClean(2, "again", "used", "web", "young") })
	h.assertClean(1, "again", "web", "young")
}

func TestSnapshots(t *testing.T) { eachHome(t, testSnapshots) }

func testSnapshots(t *testing.T, h home) {
	ctx := t.Context()
	h.create("distro")
	require.NoError(t, h.backend.Clone(ctx, "web", "distro", cowcommon.VolumeOptions{}))
	h.put("web", "file", "1")
	m, err := h.Snapshot(ctx, "web", "first", live.SnapshotOptions{Message: "before the upgrade"})
	require.NoError(t, err)
	assert.Equal(t, "distro", m.Base)
	assert.Equal(t, "before the upgrade", m.Message)
	_, err = h.Snapshot(ctx, "web", "first", live.SnapshotOptions{})
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	_, err = h.Snapshot(ctx, "web", "../x", live.SnapshotOptions{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	for range 2 {
		_, err = h.Snapshot(ctx, "web", "", live.SnapshotOptions{})
		require.NoError(t, err)
	}
	assert.Equal(t, []string{"first", "snapshot-1", "snapshot-2"}, h.names("web"))

	// A fork of a snapshot outlives it.
	_, err = h.Fork(ctx, m.Volume, []string{"fork"}, live.ForkOptions{})
	require.NoError(t, err)
	require.NoError(t, h.RemoveSnapshot(ctx, "web", "first"))
	require.ErrorIs(t, h.RemoveSnapshot(ctx, "web", "first"), errdefs.ErrNotFound)
	assert.Equal(t, "1", h.get("fork", "file"))
	assert.Equal(t, []string{"snapshot-1", "snapshot-2"}, h.names("web"))

	// Snapshots go with their layer.
	require.NoError(t, h.backend.Remove(ctx, "web"))
	require.NoError(t, h.backend.Remove(ctx, "fork"))
	h.assertClean(0, "distro")
}

func TestRollback(t *testing.T) { eachHome(t, testRollback) }

func testRollback(t *testing.T, h home) {
	for _, how := range []live.RollbackOptions{{}, {Live: true}} {
		ctx := t.Context()
		h.create("distro")
		require.NoError(t, h.backend.Clone(ctx, "web", "distro", cowcommon.VolumeOptions{}))
		h.put("web", "dir/file", "1")
		h.put("web", "gone", "1")
		_, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
		h.put("web", "dir/file", "2")
		h.put("web", "new/file", "2")
		h.remove("web", "gone")
		_, err = h.Snapshot(ctx, "web", "two", live.SnapshotOptions{})
		require.NoError(t, err)
		h.put("web", "dir/file", "3")
		h.edit("web", func(string) {
			before, err := h.Rollback(ctx, "web", "one", how)
			if how.Live {
				require.NoError(t, err)
				assert.Equal(t, "before-rollback-1", before.Name)
			} else {
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			}
		})
		if !how.Live {
			assert.Equal(t, "3", h.get("web", "dir/file"))
			_, err := h.Rollback(ctx, "web", "one", how)
			require.NoError(t, err)
		}
		assert.Equal(t, []string{"one", "two", "before-rollback-1"}, h.names("web"))
		assert.Equal(t, "1", h.get("web", "dir/file"))
		assert.Equal(t, "1", h.get("web", "gone"))
		assert.Empty(t, h.get("web", "new/file"))
		v, err := h.backend.Stat(ctx, "web")
		require.NoError(t, err)
		assert.False(t, v.Sealed)
		base, err := h.Base(ctx, v)
		require.NoError(t, err)
		assert.Equal(t, "distro", base)

		h.put("web", "file", "4")
		for name, want := range map[string]string{"before-rollback-1": "3", "two": "2", "one": "1"} {
			_, err := h.Rollback(ctx, "web", name, how)
			require.NoError(t, err)
			assert.Equal(t, want, h.get("web", "dir/file"), name)
		}
		_, err = h.Rollback(ctx, "web", "none", how)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.NoError(t, h.backend.Remove(ctx, "web"))
		h.assertClean(0, "distro")
		require.NoError(t, h.backend.Remove(ctx, "distro"))
	}
}

// TestRollbackNot: a layer from which others were made cannot change.
func TestRollbackNot(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	_, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	require.NoError(t, h.backend.Clone(ctx, "child", "web", cowcommon.VolumeOptions{}))
	for _, how := range []live.RollbackOptions{{}, {Live: true}} {
		_, err = h.Rollback(ctx, "web", "one", how)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	}
}

func TestForkCrash(t *testing.T) { testForkCrash(t, onBtrfs()) }

func testForkCrash(t *testing.T, kinds map[string]crashing) {
	eachCrash(t, kinds,
		func(h home) { h.create("web"); h.put("web", "file", "1") },
		func(h home) error {
			_, err := h.Fork(t.Context(), "web", []string{"a", "b"}, live.ForkOptions{})
			return err
		},
		func(h home, done bool) {
			if done {
				h.assertClean(1, "a", "b", "web")
			} else {
				h.assertClean(0, "web")
			}
		})
}

// TestRollbackCrash: the layer is as it was, or as the snapshot, with its former content as another.
func TestRollbackCrash(t *testing.T) { testRollbackCrash(t, onBtrfs()) }

func testRollbackCrash(t *testing.T, kinds map[string]crashing) {
	eachCrash(t, kinds,
		func(h home) {
			h.create("web")
			h.put("web", "file", "1")
			_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
			require.NoError(h.t, err)
			h.put("web", "file", "2")
		},
		func(h home) error {
			_, err := h.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			return err
		},
		func(h home, done bool) {
			require.NoError(h.t, h.Sweep(t.Context()))
			if h.get("web", "file") == "2" {
				assert.False(h.t, done)
				h.assertClean(1, "web")
				return
			}
			assert.Equal(h.t, "1", h.get("web", "file"))
			assert.Equal(h.t, []string{"one", "before-rollback-1"}, h.names("web"))
			h.assertClean(2, "web")
			_, err := h.Rollback(t.Context(), "web", "before-rollback-1", live.RollbackOptions{})
			require.NoError(h.t, err)
			assert.Equal(h.t, "2", h.get("web", "file"))
		})
}
