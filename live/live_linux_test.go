package live_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
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
	h.assertStyle("web", m.Volume, "a", "b")

	_, err := h.Fork(ctx, "web", []string{"c"}, live.ForkOptions{Fork: live.Fork{Labels: map[string]string{"task": "1\n"}}})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	for _, taken := range []string{"a", "web"} {
		_, err := h.Fork(ctx, "web", []string{"c", taken}, live.ForkOptions{})
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	}
	_, err = h.Fork(ctx, "none", []string{"c"}, live.ForkOptions{})
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

// TestForkNamedAsItsLayer: no layer made from a moment gets the name of the moment's layer, also when that is gone. It would have the
// base of that layer, and as a fork would not expire.
func TestForkNamedAsItsLayer(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	m, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	expired := live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(-time.Second)}}
	_, err = h.Fork(ctx, m.Volume, []string{"other", "web"}, expired)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	require.ErrorIs(t, h.CheckParent(ctx, "web", m.Volume), errdefs.ErrAlreadyExists)
	require.NoError(t, h.CheckParent(ctx, "web", "image"))
	require.NoError(t, h.backend.Remove(ctx, "web"))
	_, err = h.Fork(ctx, m.Volume, []string{"other", "web"}, expired)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorIs(t, h.CheckParent(ctx, "web", m.Volume), errdefs.ErrInvalidArgument)
	require.NoError(t, h.CheckParent(ctx, "other", m.Volume))
	assert.Equal(t, []string{"one"}, h.names("web"), "the snapshot has its name still")
	_, err = h.Fork(ctx, m.Volume, []string{"other"}, expired)
	require.NoError(t, err)
	h.assertClean(0)
}

// TestForkExpiresNot: a fork stays while others made from it are there, and its snapshots do not count.
func TestForkExpiresNot(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h, ctx := newHome(t), t.Context()
		h.create("web")
		_, err := h.Fork(ctx, "web", []string{"plain", "parent"}, live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(-time.Second)}})
		require.NoError(t, err)
		_, err = h.Snapshot(ctx, "plain", "one", live.SnapshotOptions{})
		require.NoError(t, err)
		h.clone("child", "parent")
		h.assertClean(1, "child", "parent", "web")
		require.NoError(t, h.backend.Remove(ctx, "child"))
		h.assertClean(0, "web")
	})
}

// TestForkRolledBack: a fork is one also after a rollback, and after its snapshots have gone: it expires, and keeps its labels
// and the moment from which its changes count.
func TestForkRolledBack(t *testing.T) { eachHome(t, testForkRolledBack) }

func testForkRolledBack(t *testing.T, h home) {
	ctx := t.Context()
	h.create("web")
	h.put("web", "file", "1")
	rollBack := func(fork string, opts live.ForkOptions) {
		_, err := h.Fork(ctx, "web", []string{fork}, opts)
		require.NoError(t, err)
		h.put(fork, "own", "2")
		_, err = h.Snapshot(ctx, fork, "one", live.SnapshotOptions{})
		require.NoError(t, err)
		_, err = h.Rollback(ctx, fork, "one", live.RollbackOptions{})
		require.NoError(t, err)
	}
	rollBack("kept", live.ForkOptions{Fork: live.Fork{Labels: map[string]string{"task": "1"}}})
	for _, name := range h.names("kept") {
		require.NoError(t, h.RemoveSnapshot(ctx, "kept", name))
	}
	rollBack("expired", live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(-time.Second)}})
	h.assertClean(2, "kept", "web") // that of the fork, and that from which its content was made
	v, err := h.backend.Stat(ctx, "kept")
	require.NoError(t, err)
	m, err := h.ForkedFrom(ctx, v)
	require.NoError(t, err)
	require.Len(t, m.Forks, 1)
	assert.Equal(t, map[string]string{"task": "1"}, m.Forks[0].Labels)
	merged, err := h.Merge(ctx, "kept", live.MergeOptions{})
	require.NoError(t, err)
	require.Len(t, merged.Changes, 1)
	assert.Equal(t, "/own", merged.Changes[0].Path)
	require.NoError(t, errors.Join(h.backend.Remove(ctx, "kept"), h.backend.Remove(ctx, "web")))
	h.assertClean(0)
}

func TestSnapshots(t *testing.T) { eachHome(t, testSnapshots) }

func testSnapshots(t *testing.T, h home) {
	ctx := t.Context()
	h.image("distro")
	h.clone("web", "distro")
	h.put("web", "file", "1")
	m, err := h.Snapshot(ctx, "web", "first", live.SnapshotOptions{Message: "before the upgrade"})
	require.NoError(t, err)
	assert.Equal(t, "distro", m.Base)
	assert.Equal(t, "before the upgrade", m.Message)
	_, err = h.Snapshot(ctx, "web", "first", live.SnapshotOptions{})
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	_, err = h.Snapshot(ctx, "web", "../x", live.SnapshotOptions{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = h.Snapshot(ctx, "web", "long", live.SnapshotOptions{Message: strings.Repeat("x", 4<<20)})
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

// TestNewLayer: a new layer does not have the snapshots of a former layer of that name, however it is made. Forks of these stay.
func TestNewLayer(t *testing.T) {
	for name, again := range map[string]func(h home) error{
		"create": func(h home) error {
			return errors.Join(h.NewLayer(t.Context(), "web"), h.backend.Create(t.Context(), "web", cowcommon.VolumeOptions{}))
		},
		"fork": func(h home) error {
			_, err := h.Fork(t.Context(), "fork", []string{"web"}, live.ForkOptions{})
			return err
		},
		"adopt": func(h home) error {
			_, err := h.Adopt(t.Context(), "web", t.TempDir(), cowcommon.VolumeOptions{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, ctx := newHome(t), t.Context()
			h.create("web")
			h.put("web", "file", "1")
			m, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
			require.NoError(t, err)
			_, err = h.Fork(ctx, m.Volume, []string{"fork"}, live.ForkOptions{})
			require.NoError(t, err)
			require.ErrorIs(t, h.NewLayer(ctx, "web"), errdefs.ErrAlreadyExists)
			require.NoError(t, h.backend.Remove(ctx, "web"))
			require.NoError(t, again(h))
			assert.Empty(t, h.names("web"))
			assert.Equal(t, "1", h.get("fork", "file"))
			moments := 1 // of the fork
			if name == "fork" {
				moments++
			}
			h.assertClean(moments, "fork", "web")
		})
	}
	require.NoError(t, newHome(t).NewLayer(t.Context(), "web"), "there are no records yet")
}

// TestNewLayerMarks: the snapshots of a former layer are found by its mark, and without the directory of the marks, as an earlier version
// leaves it. A Sweep makes the directory. Marks go with the moments.
func TestNewLayerMarks(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	marks := func() int {
		entries, err := os.ReadDir(filepath.Join(h.records, "named"))
		require.NoError(t, err)
		return len(entries)
	}
	for _, earlier := range []bool{false, true} {
		h.create("web")
		m, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
		_, err = h.Fork(ctx, m.Volume, []string{"fork"}, live.ForkOptions{})
		require.NoError(t, err)
		assert.Equal(t, 1, marks(), "that of web")
		if earlier {
			require.NoError(t, os.RemoveAll(filepath.Join(h.records, "named")))
		}
		require.NoError(t, h.backend.Remove(ctx, "web"))
		require.NoError(t, h.NewLayer(ctx, "web"))
		h.create("web")
		assert.Empty(t, h.names("web"))
		h.assertClean(1, "fork", "web")
		assert.Equal(t, 1, marks())
		require.NoError(t, errors.Join(h.backend.Remove(ctx, "web"), h.backend.Remove(ctx, "fork")))
		h.assertClean(0)
		assert.Zero(t, marks())
	}
}

func TestRollback(t *testing.T) { eachHome(t, testRollback) }

func testRollback(t *testing.T, h home) {
	for _, how := range []live.RollbackOptions{{}, {Live: true}} {
		ctx := t.Context()
		h.image("distro")
		h.clone("web", "distro")
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
		h.assertStyle("web")
		h.assertBase("web", "distro")

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

// TestFormerContentGoes: the snapshot of before is removed with its space, although the moment from which the layer has its content was
// made from it. Comparisons with the base go on without a walk, and merges leave one moment.
func TestFormerContentGoes(t *testing.T) { eachStyle(t, testFormerContentGoes) }

func testFormerContentGoes(t *testing.T, newHome makeHome) {
	h, ctx := newHome(t), t.Context()
	h.image("distro")
	h.clone("web", "distro")
	h.put("web", "file", "1")
	_, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	before, err := h.Rollback(ctx, "web", "one", live.RollbackOptions{})
	require.NoError(t, err)
	require.NoError(t, h.RemoveSnapshot(ctx, "web", before.Name))
	_, err = h.backend.Stat(ctx, before.Volume)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	h.assertClean(1, "distro", "web")
	for n := range 3 {
		fork := fmt.Sprint("fork-", n)
		_, err := h.Fork(ctx, "web", []string{fork}, live.ForkOptions{})
		require.NoError(t, err)
		h.put(fork, fork, "1")
		merged, err := h.Merge(ctx, fork, live.MergeOptions{})
		require.NoError(t, err)
		require.NoError(t, errors.Join(h.RemoveSnapshot(ctx, "web", merged.Before.Name), h.backend.Remove(ctx, fork)))
		h.assertClean(2, "distro", "web") // one, and the moment from which the layer was made
	}
	h.assertBase("web", "distro")
	for _, ref := range []string{"web", "web@one"} {
		d, err := h.Diff(ctx, ref, "")
		require.NoError(t, err)
		assert.True(t, d.Native, ref)
		assert.Len(t, d.Changes, map[string]int{"web": 4, "web@one": 1}[ref], ref)
		require.NoError(t, d.Close())
	}
	require.NoError(t, h.backend.Remove(ctx, "web"))
	h.assertClean(0, "distro")
}

// TestAttributesAlone: a rollback in place and a merge have changes of attributes, ACLs and times without a change of content.
func TestAttributesAlone(t *testing.T) { eachHome(t, testAttributesAlone) }

func testAttributesAlone(t *testing.T, h home) {
	ctx := t.Context()
	h.create("web")
	h.sh("web", "mkdir -p dir/sub; echo 1 >dir/file; echo 1 >acl; echo 1 >time; echo 1 >other; touch -d @1000.5 time dir/sub dir")
	const acl = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x01\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	set := func(layer string, values map[string]string) {
		h.edit(layer, func(dir string) {
			for at, value := range values {
				path, name, _ := strings.Cut(at, ":")
				require.NoError(t, unix.Setxattr(filepath.Join(dir, path), name, []byte(value), 0), at)
			}
		})
	}
	set("web", map[string]string{"dir/file:user.was": "1", "dir:user.was": "1"})
	want, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	_, err = h.Fork(ctx, "web", []string{"fork"}, live.ForkOptions{})
	require.NoError(t, err)
	changed := map[string]string{"dir/file:user.was": "2", "dir:user.new": "2", "acl:system.posix_acl_access": acl}
	set("web", changed)
	h.sh("web", "touch -d @2000.7 time dir/sub dir; chmod 600 other")
	_, err = h.Rollback(ctx, "web", "one", live.RollbackOptions{Live: true})
	require.NoError(t, err)
	h.assertSame("web", h, want.Volume)

	set("fork", changed)
	h.put("web", "own", "1")
	for _, inPlace := range []bool{true, false} {
		merged, err := h.Merge(ctx, "fork", live.MergeOptions{Live: inPlace})
		require.NoError(t, err)
		var paths []string
		for _, c := range merged.Changes {
			paths = append(paths, c.Path)
		}
		assert.Equal(t, []string{"/acl", "/dir", "/dir/file"}, paths)
		h.edit("web", func(dir string) {
			value := make([]byte, 256)
			for at, want := range changed {
				path, name, _ := strings.Cut(at, ":")
				n, err := unix.Getxattr(filepath.Join(dir, path), name, value)
				require.NoError(t, err, at)
				assert.Equal(t, want, string(value[:n]), at)
			}
		})
		_, err = h.Rollback(ctx, "web", merged.Before.Name, live.RollbackOptions{})
		require.NoError(t, err)
	}
}

// TestRollbackNot: a layer from which others were made cannot change.
func TestRollbackNot(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h, ctx := newHome(t), t.Context()
		h.create("web")
		_, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
		h.clone("child", "web")
		for _, how := range []live.RollbackOptions{{}, {Live: true}} {
			_, err = h.Rollback(ctx, "web", "one", how)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		}
	})
}

// TestRollbackNested: a snapshot that a clone would lack a part of is no new content of a layer.
func TestRollbackNested(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	_, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	h.edit("web", func(dir string) {
		root, err := os.Open(dir)
		require.NoError(t, err)
		defer root.Close()
		require.NoError(t, btrfsctl.CreateSubvolume(int(root.Fd()), "inner", nil))
	})
	h.put("web", "inner/file", "1")
	before, err := h.Rollback(ctx, "web", "one", live.RollbackOptions{})
	require.NoError(t, err)
	h.put("web", "file", "2")
	_, err = h.Rollback(ctx, "web", before.Name, live.RollbackOptions{})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	assert.Equal(t, "2", h.get("web", "file"))
	h.assertClean(2, "web")
	_, err = h.Rollback(ctx, "web", before.Name, live.RollbackOptions{Live: true})
	require.NoError(t, err)
	assert.Equal(t, "1", h.get("web", "inner/file"))
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
			layers, _ := h.layers()
			if len(layers) == 1 {
				assert.False(h.t, done)
				h.assertClean(0, "web")
				return
			}
			if done {
				assert.Equal(h.t, []string{"a", "b", "web"}, layers)
			} else {
				assert.Equal(h.t, []string{"a", "web"}, layers)
			}
			h.put("a", "work", "1")
			h.assertClean(1, layers...) // a fork that somebody has begun to use stays
			assert.Equal(h.t, "1", h.get("a", "work"))
			moments, err := h.Moments(t.Context(), "web")
			require.NoError(h.t, err)
			require.Len(h.t, moments, 1)
			assert.Len(h.t, moments[0].Forks, len(layers)-1)
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

// TestConcurrency: forks, snapshots, rollbacks, removals and sweeps of one layer at once, by two users of the directory.
func TestConcurrency(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h, ctx := newHome(t), t.Context()
		other := h.over(h.backend)
		h.create("web")
		h.put("web", "file", "1")
		_, err := h.Snapshot(ctx, "web", "kept", live.SnapshotOptions{})
		require.NoError(t, err)
		var group errgroup.Group
		for i := range 6 {
			l := h
			if i%2 == 1 {
				l = other
			}
			group.Go(func() error {
				for n := range 5 {
					fork := fmt.Sprintf("fork-%d-%d", i, n)
					if _, err := l.Fork(ctx, "web", []string{fork}, live.ForkOptions{}); err != nil {
						return err
					}
					s, err := l.Snapshot(ctx, "web", "", live.SnapshotOptions{})
					if err != nil {
						return err
					}
					before, err := l.Rollback(ctx, "web", "kept", live.RollbackOptions{})
					if err == nil {
						err = l.RemoveSnapshot(ctx, "web", before.Name)
					}
					if err != nil && !errdefs.IsFailedPrecondition(err) { // others look at it
						return err
					}
					if err := errors.Join(l.backend.Remove(ctx, fork), l.Sweep(ctx), l.RemoveSnapshot(ctx, "web", s.Name)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		require.NoError(t, group.Wait())
		assert.Equal(t, []string{"kept"}, h.names("web"))
		assert.Equal(t, "1", h.get("web", "file"))
		require.NoError(t, h.backend.Remove(ctx, "web"))
		h.assertClean(0)
	})
}

// TestDiff compares layers, snapshots and forks in each direction. The filesystem lists the changes of each.
func TestDiff(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h, ctx := newHome(t), t.Context()
		h.image("distro")
		h.clone("web", "distro")
		h.put("web", "file", "1")
		_, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
		_, err = h.Fork(ctx, "web", []string{"fork"}, live.ForkOptions{})
		require.NoError(t, err)
		h.put("web", "new", "2")
		_, err = h.Rollback(ctx, "web", "one", live.RollbackOptions{})
		require.NoError(t, err)
		h.put("web", "file", "3")
		h.put("fork", "own", "4")
		for _, c := range []struct{ ref, since, want string }{
			{"web", "", "A /file"},
			{"web", "web@one", "C /file"},
			{"web", "web@before-rollback-1", "C /file D /new"},
			{"web@before-rollback-1", "", "A /file A /new"},
			{"web@before-rollback-1", "web@one", "A /new"},
			{"web@one", "web@before-rollback-1", "D /new"},
			{"fork", "", "A /own"},
			{"fork", "web", "C /file A /own"},
			{"fork", "distro", "A /file A /own"},
		} {
			d, err := h.Diff(ctx, c.ref, c.since)
			require.NoError(t, err, c)
			var changes []string
			for _, change := range d.Changes {
				changes = append(changes, change.String())
			}
			assert.Equal(t, c.want, strings.Join(changes, " "), c)
			assert.True(t, d.Native, c)
			require.NoError(t, d.Close())
		}
		for _, refs := range [][2]string{{"none", ""}, {"web", "none"}, {"web@none", ""}, {"web", "web@none"}} {
			_, err := h.Diff(ctx, refs[0], refs[1])
			require.ErrorIs(t, err, errdefs.ErrNotFound, refs)
		}
	})
}

// TestLimits: a fork has its own limit, and a layer keeps its limit through a rollback. A snapshot has none.
func TestLimits(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h, ctx := newHome(t, testfs.WithSimpleQuota()), t.Context()
		limit := quota.Limit{Bytes: 64 << 20}
		h.createWith("web", cowcommon.VolumeOptions{Limit: limit})
		m, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
		forks := live.ForkOptions{Volume: cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 32 << 20}}}
		_, err = h.Fork(ctx, "web", []string{"fork"}, forks)
		require.NoError(t, err)
		_, err = h.Rollback(ctx, "web", "one", live.RollbackOptions{})
		require.NoError(t, err)
		for name, want := range map[string]uint64{"web": 64 << 20, "fork": 32 << 20, m.Volume: 0} {
			v, err := h.backend.Stat(ctx, name)
			require.NoError(t, err)
			assert.Equal(t, want, v.Limit.Bytes, name)
		}
	})
}

// TestRecordStays: a crash may leave the record of a step that has ended where it was, or in both places. The step counts, and its
// record goes with the moment later.
func TestRecordStays(t *testing.T) {
	for left, leave := range map[string]func(from, to string) error{"alone": os.Rename, "in both places": os.Link} {
		for _, kind := range []string{"snapshot", "fork"} {
			t.Run(kind+", "+left, func(t *testing.T) { testRecordStays(t, kind, leave) })
		}
	}
}

func testRecordStays(t *testing.T, kind string, leave func(from, to string) error) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	var m live.Moment
	var err error
	if kind == "fork" {
		m, err = h.Fork(ctx, "web", []string{"fork"}, live.ForkOptions{})
	} else {
		m, err = h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	}
	require.NoError(t, err)
	record := m.Volume + ".json"
	require.NoError(t, leave(filepath.Join(h.records, "moments", record), filepath.Join(h.records, "pending", record)))
	if kind == "fork" {
		h.assertClean(1, "fork", "web")
		v, err := h.backend.Stat(ctx, "fork")
		require.NoError(t, err)
		_, err = h.ForkedFrom(ctx, v)
		require.NoError(t, err)
		require.NoError(t, h.backend.Remove(ctx, "fork"))
	} else {
		h.assertClean(1, "web")
		assert.Equal(t, []string{"one"}, h.names("web"))
		require.NoError(t, h.RemoveSnapshot(ctx, "web", "one"))
	}
	h.assertClean(0, "web")
}
