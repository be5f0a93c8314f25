package live_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// problems lists the problems of a home, with their advice.
func (h home) problems() (all []string) {
	h.t.Helper()
	problems, err := h.Check(h.t.Context())
	require.NoError(h.t, err)
	for _, p := range problems {
		assert.NotEmpty(h.t, p.Advice)
		all = append(all, p.What)
	}
	return all
}

func (h home) count() live.Counts {
	h.t.Helper()
	counts, err := live.Count(h.records, time.Now())
	require.NoError(h.t, err)
	return counts
}

func (h home) mustFork(of, name string, expires time.Time) live.Moment {
	h.t.Helper()
	m, err := h.Fork(h.t.Context(), of, []string{name}, live.ForkOptions{Fork: live.Fork{Expires: expires}})
	require.NoError(h.t, err)
	return m
}

// TestCheck finds each state, and none of them while all is well.
func TestCheck(t *testing.T) {
	h := newHome(t)
	ctx := t.Context()
	assert.Empty(t, h.problems())
	assert.Zero(t, h.count(), "there is nothing yet")
	h.create("web")
	m, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	forked := h.mustFork("web", "fork", time.Time{})
	h.mustFork(m.Volume, "of-snapshot", time.Now().Add(time.Hour))
	_, err = h.Rollback(ctx, "web", "one", live.RollbackOptions{})
	require.NoError(t, err)
	assert.Empty(t, h.problems())
	assert.Equal(t, live.Counts{Snapshots: 2, Forks: 2}, h.count())

	t.Run("expired", func(t *testing.T) {
		h.mustFork("web", "brief", time.Now().Add(-time.Second))
		require.Len(t, h.problems(), 1)
		assert.Contains(t, h.problems()[0], "fork brief of layer web has expired")
		assert.Equal(t, live.Counts{Snapshots: 2, Forks: 3, Expired: 1}, h.count())
		require.NoError(t, h.Sweep(ctx))
		assert.Empty(t, h.problems())
	})
	t.Run("origin gone", func(t *testing.T) {
		h.create("gone")
		_, err := h.Snapshot(ctx, "gone", "x", live.SnapshotOptions{})
		require.NoError(t, err)
		require.NoError(t, h.backend.Remove(ctx, "gone"))
		require.Len(t, h.problems(), 1)
		assert.Contains(t, h.problems()[0], "layer gone, which is gone")
		require.NoError(t, h.Sweep(ctx))
		assert.Empty(t, h.problems())
	})
	t.Run("record without volume", func(t *testing.T) {
		m, err := h.Snapshot(ctx, "web", "lost", live.SnapshotOptions{})
		require.NoError(t, err)
		require.NoError(t, h.backend.Remove(ctx, m.Volume))
		assert.Equal(t, []string{"snapshot web@lost has lost its volume " + m.Volume}, h.problems())
		require.NoError(t, h.Sweep(ctx))
		assert.Empty(t, h.problems())
	})
	t.Run("volume without record", func(t *testing.T) {
		stray := strings.TrimRight(m.Volume, "abcdefghijklmnopqrstuvwxyz234567") + "aaaaaaaaaaaa"
		require.NoError(t, h.backend.Create(ctx, stray, cowcommon.VolumeOptions{}))
		assert.Equal(t, []string{"volume " + stray + " has the name of a moment, and no record"}, h.problems())
		require.NoError(t, h.Sweep(ctx))
		assert.Len(t, h.problems(), 1, "it may belong to others")
		require.NoError(t, h.backend.Remove(ctx, stray))
	})
	t.Run("interrupted", func(t *testing.T) {
		record := filepath.Join(h.records, "moments", m.Volume+".json")
		data, err := os.ReadFile(record)
		require.NoError(t, err)
		pending := filepath.Join(h.records, "pending", m.Volume+".json")
		require.NoError(t, os.WriteFile(pending, data, 0o600))
		require.Len(t, h.problems(), 1)
		assert.Contains(t, h.problems()[0], "was interrupted")
		assert.Equal(t, 1, h.count().Pending)
		require.NoError(t, h.Sweep(ctx))
		assert.Empty(t, h.problems())
	})
	t.Run("unreadable", func(t *testing.T) {
		record := filepath.Join(h.records, "moments", m.Volume+".json")
		data, err := os.ReadFile(record)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(record, []byte("{"), 0o600))
		require.Len(t, h.problems(), 1)
		assert.Contains(t, h.problems()[0], record)
		assert.Equal(t, 1, h.count().Unreadable)
		require.NoError(t, os.WriteFile(record, data, 0o600))
	})
	t.Run("somebody at work", func(t *testing.T) {
		lock, err := os.Open(filepath.Join(h.records, ".lock"))
		require.NoError(t, err)
		defer lock.Close()
		require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_SH))
		_, err = h.Check(ctx)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
	})
	t.Run("moment of a fork gone", func(t *testing.T) {
		require.NoError(t, h.backend.Remove(ctx, forked.Volume))
		require.Len(t, h.problems(), 1)
		assert.Contains(t, h.problems()[0], "layer fork was forked from moment "+forked.Volume)
	})
}
