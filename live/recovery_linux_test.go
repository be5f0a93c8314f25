package live_test

import (
	"context"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// nameless makes a layer with the snapshot "one", and interrupts a rollback to it when the layer has no name.
func nameless(t *testing.T) home {
	t.Helper()
	for n := range 10 {
		h := newHome(t)
		h.create("web")
		h.put("web", "file", "1")
		_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
		require.NoError(t, err)
		h.put("web", "file", "2")
		_, err = h.over(&failing{Backend: h.backend, left: n}).Rollback(t.Context(), "web", "one", live.RollbackOptions{})
		require.ErrorIs(t, err, errCrash)
		if _, err := h.backend.Stat(t.Context(), "web"); errdefs.IsNotFound(err) {
			return h.over(&failing{Backend: h.backend, left: -1})
		}
	}
	require.Fail(t, "the layer always has a name")
	return home{}
}

func TestRecover(t *testing.T) {
	h := nameless(t)
	require.NoError(t, h.Recover(t.Context()))
	assert.Equal(t, "1", h.get("web", "file"))
	assert.Equal(t, []string{"one", "before-rollback-1"}, h.names("web"))
	h.assertClean(2, "web")
	require.NoError(t, newHome(t).Recover(t.Context()), "there is nothing yet")
}

// TestNameTaken: somebody makes another layer while a layer has no name. The former content is still a snapshot.
func TestNameTaken(t *testing.T) {
	h := nameless(t)
	h.create("web")
	require.NoError(t, h.Recover(t.Context()))
	h.assertClean(2, "web")
	require.Contains(t, h.names("web"), "before-rollback-1")
	_, err := h.Rollback(t.Context(), "web", "before-rollback-1", live.RollbackOptions{})
	require.NoError(t, err)
	assert.Equal(t, "2", h.get("web", "file"))
}

// TestNameBackMeanwhile: NewLayer looks for a layer that has no name at the moment. The layer has its name again when NewLayer looks
// for steps, and keeps its snapshots.
func TestNameBackMeanwhile(t *testing.T) {
	h := newHome(t)
	h.create("web")
	_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	looked, ended := make(chan struct{}), make(chan error, 1)
	nameless := make(chan struct{})
	rollback := h.over(beforeName{&failing{Backend: h.backend, left: -1}, func() { close(nameless); <-looked }})
	go func() {
		_, err := rollback.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
		ended <- err
	}()
	testfs.Begun(t, nameless, ended)
	other := h.over(afterLook{h.backend, sync.OnceFunc(func() {
		close(looked)
		assert.NoError(t, testfs.Result(ended))
	})})
	require.ErrorIs(t, other.NewLayer(t.Context(), "web"), errdefs.ErrAlreadyExists)
	assert.Equal(t, []string{"one", "before-rollback-1"}, h.names("web"))
}

// TestLookWhileNameless: a layer has no name for the moment. Others that look for it wait until it has its name again.
func TestLookWhileNameless(t *testing.T) {
	for name, look := range map[string]func(h home) error{
		"snapshot": func(h home) error {
			_, err := h.Snapshot(t.Context(), "web", "two", live.SnapshotOptions{})
			return err
		},
		"fork": func(h home) error {
			_, err := h.Fork(t.Context(), "web", []string{"fork"}, live.ForkOptions{})
			return err
		},
		"find": func(h home) error { _, err := h.Find(t.Context(), "web"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.create("web")
			_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
			require.NoError(t, err)
			missed := make(chan error, 1)
			rollback := h.over(beforeName{&failing{Backend: h.backend, left: -1}, func() {
				first := make(chan struct{})
				other := h.over(looking{failingNative{&failing{Backend: h.backend, left: -1}}, sync.OnceFunc(func() { close(first) })})
				go func() { missed <- look(other) }()
				testfs.Receive(t, first)
			}})
			_, err = rollback.Rollback(t.Context(), "web", "one", live.RollbackOptions{})
			require.NoError(t, err)
			require.NoError(t, testfs.Result(missed))
		})
	}
}

// looking is afterLook with all else that a Backend can do.
type looking struct {
	failingNative
	do func()
}

func (b looking) Stat(ctx context.Context, name string) (cowcommon.Volume, error) {
	return afterLook{b.failingNative, b.do}.Stat(ctx, name)
}

// TestGetWhileReplaced: a snapshot is there while its record is replaced.
func TestGetWhileReplaced(t *testing.T) {
	h := newHome(t)
	h.create("web")
	m, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	record := filepath.Join(h.records, "moments", m.Volume+".json")
	data, err := os.ReadFile(record)
	require.NoError(t, err)
	var looked atomic.Bool
	var group errgroup.Group
	group.Go(func() error {
		for !looked.Load() {
			if err := atomicfile.WriteAs(record, ".new-", data, 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	group.Go(func() error {
		defer looked.Store(true)
		for range 3000 {
			if _, err := h.Get("web", "one"); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(t, group.Wait())
}

// beforeName is a Backend without Exchanger that calls do just before a volume becomes the layer web.
type beforeName struct {
	*failing
	do func()
}

func (b beforeName) Rename(ctx context.Context, name, to string) error {
	if to == "web" {
		b.do()
	}
	return b.failing.Rename(ctx, name, to)
}

// afterLook is a Backend that calls do after each look for a volume.
type afterLook struct {
	cowcommon.Backend
	do func()
}

func (b afterLook) Stat(ctx context.Context, name string) (cowcommon.Volume, error) {
	v, err := b.Backend.Stat(ctx, name)
	b.do()
	return v, err
}

// TestFailedRecovery: the layer still has no name after an attempt to recover. Its snapshots stay until it has.
func TestFailedRecovery(t *testing.T) {
	h := nameless(t)
	other := h.over(noRename{h.backend})
	require.NoError(t, other.Sweep(t.Context()))
	require.ErrorIs(t, other.NewLayer(t.Context(), "web"), errdefs.ErrFailedPrecondition)
	h.assertClean(2, "web")
	assert.Equal(t, []string{"one", "before-rollback-1"}, h.names("web"))
}

// noRename is a Backend that cannot rename now.
type noRename struct{ cowcommon.Backend }

func (noRename) Rename(context.Context, string, string) error { return errCrash }

// TestTemporaryRecords: records that a crash has left half-written go.
func TestTemporaryRecords(t *testing.T) {
	h := newHome(t)
	h.create("web")
	_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	for _, dir := range []string{"moments", "pending"} {
		require.NoError(t, os.WriteFile(filepath.Join(h.records, dir, ".new-1"), nil, 0o600))
	}
	h.assertClean(1, "web")
}

// TestStaleMemory: a process was killed when the layer had no name, and the Backend still describes the layer from memory. The
// layer gets its new content, and no moment goes.
func TestStaleMemory(t *testing.T) {
	h := nameless(t)
	known := &remembering{Backend: h.backend, volume: cowcommon.Volume{Name: "web"}}
	require.NoError(t, h.over(known).Sweep(t.Context()))
	assert.Equal(t, "1", h.get("web", "file"))
	assert.Equal(t, []string{"one", "before-rollback-1"}, h.names("web"))
	h.assertClean(2, "web")
}

// remembering is a Backend that replaces by two renames, and believes that a volume is there until it lists all.
type remembering struct {
	cowcommon.Backend
	volume cowcommon.Volume
	listed bool
}

func (r *remembering) Stat(ctx context.Context, name string) (cowcommon.Volume, error) {
	if name == r.volume.Name && !r.listed {
		return r.volume, nil
	}
	return r.Backend.Stat(ctx, name)
}

func (r *remembering) Volumes(ctx context.Context) iter.Seq2[cowcommon.Volume, error] {
	r.listed = true
	return r.Backend.Volumes(ctx)
}

func (r *remembering) Seal(ctx context.Context, name string) error {
	return cowcommon.Seal(ctx, r.Backend, name)
}

func (r *remembering) Rename(ctx context.Context, name, to string) error {
	return cowcommon.Rename(ctx, r.Backend, name, to)
}

// sealing is a Backend that counts the attempts to seal a volume.
type sealing struct {
	*failing
	tries int
}

func (s *sealing) SealAsIs(ctx context.Context, name string) error {
	s.tries++
	return s.failing.SealAsIs(ctx, name)
}

// TestFormerInUse: somebody uses the former volume of a layer when an interrupted step is to be ended. Others do not wait for that.
func TestFormerInUse(t *testing.T) {
	h, ctx := nameless(t), t.Context()
	var former string
	for v, err := range h.backend.Volumes(ctx) {
		require.NoError(t, err)
		if live.IsMoment(v.Name) && !v.Sealed && !strings.HasSuffix(v.Name, ".new") {
			former = v.Name
		}
	}
	_, err := h.backend.Mount(ctx, former, "")
	require.NoError(t, err)
	backend := &sealing{failing: &failing{Backend: h.backend, left: -1}}
	require.NoError(t, h.over(backend).Sweep(ctx))
	assert.Equal(t, 1, backend.tries)
	assert.Equal(t, "1", h.get("web", "file"))
	require.NoError(t, h.backend.Unmount(ctx, former))
	h.assertClean(2, "web")
}

// TestKeptFromSweep: another process is at work for hours, so that nothing is cleaned up. The log says so each hour.
func TestKeptFromSweep(t *testing.T) {
	h := newHome(t)
	h.create("web")
	_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	lock, err := os.Open(filepath.Join(h.records, ".lock"))
	require.NoError(t, err)
	require.NoError(t, flock.Shared(t.Context(), lock))
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		layers := live.New(h.backend, h.records, slog.New(slog.NewTextHandler(&log, nil)))
		said := func() int { return strings.Count(log.String(), "expired forks and moments are not deleted") }
		for _, want := range []int{0, 0, 1, 1, 2} {
			require.NoError(t, layers.Sweep(t.Context()))
			assert.Equal(t, want, said())
			time.Sleep(40 * time.Minute)
		}
		require.NoError(t, lock.Close())
		require.NoError(t, layers.Sweep(t.Context()))
		require.NoError(t, layers.Sweep(t.Context()))
		assert.Equal(t, 2, said())
	})
}
