package cowdriver_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

var (
	errStillHeld = errors.New("still held")
	errHints     = errors.New("hints failed")
)

// observed is a real Backend that counts open views, and fails where it is told to. It notes the options of volumes, and
// calls of its methods without the mark in their context.
type observed struct {
	cowcommon.Backend
	failClose, failHints bool
	duringHints          func() // called by Hints if it is not nil

	mu       sync.Mutex
	views    int
	unmarked []string
	made     map[string]cowcommon.VolumeOptions // by volume, options that Create and Clone were called with
}

var (
	_ cowcommon.Limiter = (*observed)(nil)
	_ cowcommon.Hinter  = (*observed)(nil)
)

func (o *observed) Unwrap() cowcommon.Backend { return o.Backend }

type markKey struct{}

func (o *observed) note(ctx context.Context, method string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx.Value(markKey{}) == nil {
		o.unmarked = append(o.unmarked, method)
	}
}

func (o *observed) noteMade(name string, opts cowcommon.VolumeOptions) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.made == nil {
		o.made = make(map[string]cowcommon.VolumeOptions)
	}
	o.made[name] = opts
}

func (o *observed) Create(ctx context.Context, name string, opts cowcommon.VolumeOptions) error {
	o.note(ctx, "Create")
	o.noteMade(name, opts)
	return o.Backend.Create(ctx, name, opts)
}

func (o *observed) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	o.note(ctx, "Clone")
	o.noteMade(name, opts)
	opts.RootStyle = cowcommon.SnapshotRoot // the Backend inside has no shared roots
	return o.Backend.Clone(ctx, name, source, opts)
}

func (o *observed) Remove(ctx context.Context, name string) error {
	o.note(ctx, "Remove")
	return o.Backend.Remove(ctx, name)
}

func (o *observed) Mount(ctx context.Context, name, label string) (string, error) {
	o.note(ctx, "Mount")
	return o.Backend.Mount(ctx, name, label)
}

func (o *observed) Unmount(ctx context.Context, name string) error {
	o.note(ctx, "Unmount")
	if err := ctx.Err(); err != nil {
		return err
	}
	return o.Backend.Unmount(ctx, name)
}

func (o *observed) Stat(ctx context.Context, name string) (cowcommon.Volume, error) {
	o.note(ctx, "Stat")
	return o.Backend.Stat(ctx, name)
}

func (o *observed) Usage(ctx context.Context, name string) (quota.Usage, error) {
	o.note(ctx, "Usage")
	return cowcommon.Usage(ctx, o.Backend, name)
}

func (o *observed) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	o.note(ctx, "SetLimit")
	return cowcommon.SetLimit(ctx, o.Backend, name, limit)
}

func (o *observed) Sync(ctx context.Context, name string) error {
	o.note(ctx, "Sync")
	return o.Backend.Sync(ctx, name)
}

func (o *observed) Status(ctx context.Context) [][2]string {
	o.note(ctx, "Status")
	return o.Backend.Status(ctx)
}

func (o *observed) Hints(ctx context.Context, base, top cowcommon.View) (*treediff.Hints, error) {
	o.note(ctx, "Hints")
	if o.duringHints != nil {
		o.duringHints()
	}
	if o.failHints {
		return nil, errHints
	}
	return cowcommon.Hints(ctx, o.Backend, base, top)
}

func (o *observed) View(ctx context.Context, name string) (cowcommon.View, error) {
	o.note(ctx, "View")
	v, err := o.Backend.View(ctx, name)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.views++
	return &observedView{View: v, o: o}, nil
}

type observedView struct {
	cowcommon.View
	o    *observed
	once sync.Once
}

func (v *observedView) Close() error {
	v.once.Do(func() {
		v.o.mu.Lock()
		defer v.o.mu.Unlock()
		v.o.views--
	})
	err := v.View.Close()
	if v.o.failClose {
		err = errors.Join(err, errStillHeld)
	}
	return err
}

// observe makes a driver of an observed backend, with a base and a child that has a few files.
func observe(t *testing.T) (*cowdriver.Driver, *observed, string) {
	t.Helper()
	return observeWith(t, cowdriver.Options{})
}

func observeWith(t *testing.T, opts cowdriver.Options) (*cowdriver.Driver, *observed, string) {
	t.Helper()
	home := filepath.Join(testfs.Btrfs(t), "btrfs")
	backend, err := btrfs.Open(t.Context(), home, btrfs.Options{})
	require.NoError(t, err)
	o := &observed{Backend: backend}
	d := cowdriver.New("btrfs", o, opts)
	t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
	require.NoError(t, d.Create("base", "", nil))
	require.NoError(t, d.Create("child", "base", nil))
	write(t, d, "child", "large", 4<<20)
	o.unmarked = nil
	return d, o, home
}

// TestContextReachesTheBackend calls each method of graphdriver's API with a context, and the others beside.
func TestContextReachesTheBackend(t *testing.T) {
	d, o, _ := observe(t)
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), markKey{}, true))
	with := d.WithContext(ctx)
	require.NoError(t, with.Create("new", "", nil))
	require.NoError(t, with.CreateReadWrite("other", "base", nil))
	_, err := with.ApplyDiff("other", "base", strings.NewReader(""))
	require.NoError(t, err)
	_, err = with.Get("new", "")
	require.NoError(t, err)
	assert.True(t, with.Exists("new"))
	_, err = with.GetMetadata("child")
	require.NoError(t, err)
	_, err = with.Changes("child", "base")
	require.NoError(t, err)
	_, err = with.DiffSize("child", "base")
	require.NoError(t, err)
	diff, err := with.Diff("child", "base")
	require.NoError(t, err)
	files, err := with.DiffGetter("child")
	require.NoError(t, err)
	require.NoError(t, files.Close())
	with.Status()
	require.NoError(t, with.Remove("other"))
	assert.Equal(t, d.CompareStats(), with.CompareStats(), "it is the same driver")

	cancel()
	_, err = io.Copy(io.Discard, diff)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, diff.Close())
	require.NoError(t, with.Put("new"), "what is held can be given back")
	assert.Empty(t, o.unmarked, "called with another context")
	assert.Zero(t, o.views)
}

// TestViewsAreClosed lets things fail on the way, and the release of the views too: both are told, and none is left.
func TestViewsAreClosed(t *testing.T) {
	d, o, home := observe(t)
	o.failClose = true
	check := func(err error, want ...error) {
		t.Helper()
		for _, w := range slices.Concat(want, []error{errStillHeld}) {
			assert.ErrorIs(t, err, w)
		}
		assert.Zero(t, o.views)
		left, err := os.ReadDir(filepath.Join(home, "views"))
		require.NoError(t, err)
		assert.Empty(t, left)
	}

	_, err := d.Compare(t.Context(), "child", "missing", cowcommon.Auto)
	check(err, errdefs.ErrNotFound)
	_, err = d.Changes("child", "base")
	check(err)
	_, err = d.DiffSize("child", "base")
	check(err)

	o.failHints = true
	c, err := d.Compare(t.Context(), "child", "base", cowcommon.Auto)
	require.NoError(t, err)
	check(c.Close())
	o.failHints = false

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = d.Compare(ctx, "child", "base", cowcommon.Walk)
	check(err, context.Canceled)

	// A diff that is closed early, and a diff that is written to a place without space.
	diff, err := d.Diff("child", "base")
	require.NoError(t, err)
	_, err = io.ReadFull(diff, make([]byte, 10))
	require.NoError(t, err)
	check(diff.Close())
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer full.Close()
	diff, err = d.Diff("child", "base")
	require.NoError(t, err)
	_, err = io.Copy(full, diff)
	require.ErrorIs(t, err, syscall.ENOSPC)
	check(diff.Close())

	c, err = d.Compare(t.Context(), "child", "base", cowcommon.Walk)
	require.NoError(t, err)
	require.ErrorIs(t, c.WriteTar(t.Context(), full, nil), syscall.ENOSPC)
	check(c.Close())

	files, err := d.DiffGetter("child")
	require.NoError(t, err)
	check(files.Close())
}

// TestFailedHintsAreWalked: whatever keeps the filesystem from saying where to look, the trees are walked, and the reason is
// counted. Only the end of the context is an error.
func TestFailedHintsAreWalked(t *testing.T) {
	d, o, _ := observe(t)
	o.failHints = true
	c, err := d.Compare(t.Context(), "child", "base", cowcommon.Auto)
	require.NoError(t, err)
	assert.False(t, c.Native)
	assert.Equal(t, "unknown", c.Reason)
	assert.NotEmpty(t, c.Changes)
	require.NoError(t, c.Close())
	assert.Equal(t, cowcommon.CompareStats{Walked: map[string]uint64{"unknown": 1}}, d.CompareStats())

	ctx, cancel := context.WithCancel(t.Context())
	o.duringHints = cancel
	_, err = d.Compare(ctx, "child", "base", cowcommon.Auto)
	require.ErrorIs(t, err, errHints)
	assert.Equal(t, uint64(1), d.CompareStats().Walked["unknown"], "nobody waits for a walk")
	assert.Zero(t, o.views)
}

// TestGetEndsWithItsContext: while another process changes a layer, other users wait, and no longer than their
// context.
func TestGetEndsWithItsContext(t *testing.T) {
	d, _, home := observe(t)
	child, err := os.Open(filepath.Join(home, "subvolumes", "child"))
	require.NoError(t, err)
	defer child.Close()
	require.NoError(t, unix.Flock(int(child.Fd()), unix.LOCK_EX))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = d.WithContext(ctx).Get("child", "")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
