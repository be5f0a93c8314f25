package live_test

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// around is a Backend that calls before and after with each exchange of volumes, or each rename of a layer.
type around struct {
	failingNative
	before, after func()
}

func (a around) Exchange(ctx context.Context, name, other string) error {
	a.before()
	defer a.after()
	return a.failingNative.Exchange(ctx, name, other)
}

// cancelled returns the same layers, and a context that ends when a layer has its new content.
func (h home) cancelled(t *testing.T, before func()) (home, context.Context) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return h.over(around{failingNative{&failing{Backend: h.backend, left: -1}}, before, cancel}), ctx
}

// TestCancelled: a layer has its new content when the context ends. So the call succeeds.
func TestCancelled(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h := newHome(t)
		h.forked()
		h.put("fork", "file", "2")
		l, ctx := h.cancelled(t, func() {})
		merged, err := l.Merge(ctx, "fork", live.MergeOptions{})
		require.NoError(t, err)
		require.ErrorIs(t, ctx.Err(), context.Canceled)
		assert.Equal(t, "2", h.get("web", "file"))
		assert.Equal(t, "before-merge-1", merged.Before.Name)

		l, ctx = h.cancelled(t, func() {})
		before, err := l.Rollback(ctx, "web", "before-merge-1", live.RollbackOptions{})
		require.NoError(t, err)
		require.ErrorIs(t, ctx.Err(), context.Canceled)
		assert.Equal(t, "1\n", h.get("web", "file"))
		assert.Equal(t, "before-rollback-1", before.Name)
	})
}

// TestChangedMeanwhile: a layer changes after the moment of which the merge was made, and the context ends with the merge. The
// layer keeps the change.
func TestChangedMeanwhile(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h := newHome(t)
		h.forked()
		h.put("fork", "file", "2")
		l, ctx := h.cancelled(t, func() {
			if _, err := h.backend.Stat(t.Context(), "once"); err != nil {
				h.create("once")
				h.put("web", "meanwhile", "3")
			}
		})
		_, err := l.Merge(ctx, "fork", live.MergeOptions{})
		require.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, "1\n", h.get("web", "file"))
		assert.Equal(t, "3", h.get("web", "meanwhile"))
		h.assertBase("web", "distro")
		assert.Empty(t, h.names("web"), "nothing was merged")
		h.assertClean(2, "distro", "fork", "once", "web") // that of the fork, and that from which web was made again

		merged, err := h.Merge(t.Context(), "fork", live.MergeOptions{})
		require.NoError(t, err)
		assert.Equal(t, "web", merged.Into)
		assert.Equal(t, "2", h.get("web", "file"))
		assert.Equal(t, "3", h.get("web", "meanwhile"))
		assert.Equal(t, []string{"before-merge-1"}, h.names("web"))
	})
}

// TestInterruptedUndo: an interrupted replacement whose former content is to have no name leaves a moment without a name.
func TestInterruptedUndo(t *testing.T) {
	for n := range 20 {
		h := newHome(t)
		h.forked()
		h.put("fork", "file", "2")
		first := true
		backend := around{failingNative{&failing{Backend: h.backend, left: -1}}, nil, func() {}}
		backend.before = func() {
			if first {
				first = false
				h.put("web", "meanwhile", "3")
				backend.left = n
			}
		}
		_, err := h.over(backend).Merge(t.Context(), "fork", live.MergeOptions{})
		h.Layers = live.New(h.backend, h.records, nil)
		require.NoError(t, h.Sweep(t.Context()))
		for _, name := range h.names("web") {
			assert.Regexp(t, "^before-merge-[0-9]+$", name)
		}
		if err == nil {
			return
		}
	}
	require.Fail(t, "it never succeeds")
}

// TestCancelledRename: the context ends in the call that takes the layer's name away. The call is not given up.
func TestCancelledRename(t *testing.T) {
	for name, wrap := range map[string]func(before func(), f *failing) cowcommon.Backend{
		"native":    func(before func(), f *failing) cowcommon.Backend { return around{failingNative{f}, before, func() {}} },
		"by clones": func(before func(), f *failing) cowcommon.Backend { return meanwhile{f, before} },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.forked()
			_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
			require.NoError(t, err)
			h.put("web", "file", "2")
			ctx, cancel := context.WithCancel(t.Context())
			layers := h.over(wrap(cancel, &failing{Backend: h.backend, left: -1}))
			_, err = layers.Rollback(ctx, "web", "one", live.RollbackOptions{})
			require.NoError(t, err)
			require.ErrorIs(t, ctx.Err(), context.Canceled)
			assert.Equal(t, "1\n", h.get("web", "file"))
		})
	}
}

// TestRenamedLater: the Backend gives up the call that takes the layer's name away, and the call happens after the rollback has
// failed. The next command completes the rollback.
func TestRenamedLater(t *testing.T) {
	h := newHome(t)
	h.forked()
	_, err := h.Snapshot(t.Context(), "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	h.put("web", "file", "2")
	later := &postponing{failing: &failing{Backend: h.backend, left: -1}}
	_, err = h.over(later).Rollback(t.Context(), "web", "one", live.RollbackOptions{})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.NoError(t, later.postponed())
	_, err = h.backend.Stat(t.Context(), "web")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	h = h.over(later.failing)
	require.NoError(t, h.Recover(t.Context()))
	assert.Equal(t, "1\n", h.get("web", "file"))
	assert.Equal(t, []string{"one", "before-rollback-1"}, h.names("web"))
}

// postponing is a Backend without Exchanger that leaves the renames of web to postponed.
type postponing struct {
	*failing
	postponed func() error
}

func (p *postponing) Rename(ctx context.Context, name, to string) error {
	if name != "web" {
		return p.failing.Rename(ctx, name, to)
	}
	p.postponed = func() error { return p.failing.Rename(ctx, name, to) }
	return errdefs.ErrUnavailable
}

var _ cowcommon.Exchanger = around{}

// mounting is a Backend that calls mounted with each mount of the layer web.
type mounting struct {
	failingNative
	mounted func()
}

func (m mounting) Mount(ctx context.Context, name, label string) (string, error) {
	if name == "web" {
		m.mounted()
	}
	return m.failingNative.Mount(ctx, name, label)
}

// TestCancelledInPlace: a context that ends when changes in place have begun leaves a part of them, unless the caller has another
// context for these. Nothing changes with a context that has ended before.
func TestCancelledInPlace(t *testing.T) {
	detach := func(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }
	h := newHome(t)
	h.forked()
	h.put("fork", "file", "2")
	for _, changing := range []live.Changing{nil, detach} {
		ctx, cancel := context.WithCancel(t.Context())
		l := h.over(mounting{failingNative{&failing{Backend: h.backend, left: -1}}, cancel})
		_, err := l.Merge(ctx, "fork", live.MergeOptions{Live: true, Changing: changing})
		assert.Equal(t, changing == nil, err != nil, "%v", err)
	}
	assert.Equal(t, "2", h.get("web", "file"))
	for _, changing := range []live.Changing{nil, detach} {
		ctx, cancel := context.WithCancel(t.Context())
		l := h.over(mounting{failingNative{&failing{Backend: h.backend, left: -1}}, cancel})
		_, err := l.Rollback(ctx, "web", "before-merge-1", live.RollbackOptions{Live: true, Changing: changing})
		assert.Equal(t, changing == nil, err != nil, "%v", err)
		_, err = h.Rollback(ctx, "web", "before-merge-1", live.RollbackOptions{Live: true, Changing: detach})
		require.ErrorIs(t, err, context.Canceled)
	}
	assert.Equal(t, "1\n", h.get("web", "file"))
}
