package live_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// home is a Backend with the records of its moments. Its layers have one root style.
type home struct {
	t       *testing.T
	backend cowcommon.Backend
	style   cowcommon.RootStyle
	records string
	*live.Layers
}

func newHome(t *testing.T, opts ...testfs.BtrfsOption) home {
	t.Helper()
	return openHome(t, cowcommon.DefaultRoot, opts...)
}

// openHome makes a home on btrfs for layers of a root style.
func openHome(t *testing.T, style cowcommon.RootStyle, opts ...testfs.BtrfsOption) home {
	t.Helper()
	mnt := testfs.Btrfs(t, opts...)
	dir := filepath.Join(mnt, "home")
	backend, err := btrfs.Open(t.Context(), dir, btrfs.Options{})
	require.NoError(t, err)
	return newStyledHome(t, backend, dir, style, filepath.Join(mnt, "live"))
}

// newStyledHome makes a home of an open Backend, and closes that at the end.
func newStyledHome(t *testing.T, backend cowcommon.Backend, dir string, style cowcommon.RootStyle, records string) home {
	t.Helper()
	if style == cowcommon.SharedRoot {
		var err error
		backend, err = sharedroot.New(t.Context(), backend, dir, sharedroot.Options{})
		require.NoError(t, err)
		require.NoError(t, backend.Create(t.Context(), lowest, cowcommon.VolumeOptions{}))
	}
	t.Cleanup(func() { assert.NoError(t, backend.Close()) })
	h := home{t: t, backend: backend, style: style, records: records}
	return h.over(backend)
}

// makeHome makes a home on btrfs.
type makeHome func(t *testing.T, opts ...testfs.BtrfsOption) home

// eachStyle runs a test for layers of each root style.
func eachStyle(t *testing.T, test func(t *testing.T, newHome makeHome)) {
	for name, style := range map[string]cowcommon.RootStyle{"snapshot": cowcommon.DefaultRoot, "shared": cowcommon.SharedRoot} {
		t.Run(name, func(t *testing.T) {
			test(t, func(t *testing.T, opts ...testfs.BtrfsOption) home { return openHome(t, style, opts...) })
		})
	}
}

// lowest is the volume that layers share which are made from nothing else.
const lowest = "lowest"

// over returns the same layers over another Backend.
func (h home) over(backend cowcommon.Backend) home {
	h.Layers = live.New(backend, h.records, slog.New(slog.DiscardHandler))
	return h
}

// eachHome runs a test with the Backend's own Forker and Exchanger, and without both.
func eachHome(t *testing.T, test func(t *testing.T, h home)) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		t.Run("native", func(t *testing.T) { test(t, newHome(t)) })
		t.Run("by clones", func(t *testing.T) {
			h := newHome(t)
			test(t, h.over(&failing{Backend: h.backend, left: -1}))
		})
	})
}

// edit calls do in the tree of a layer.
func (h home) edit(layer string, do func(dir string)) {
	h.t.Helper()
	dir, err := h.backend.Mount(h.t.Context(), layer, "")
	require.NoError(h.t, err)
	do(dir)
	require.NoError(h.t, h.backend.Unmount(h.t.Context(), layer))
}

// create makes an empty layer.
func (h home) create(layer string) {
	h.t.Helper()
	h.createWith(layer, cowcommon.VolumeOptions{})
}

func (h home) createWith(layer string, opts cowcommon.VolumeOptions) {
	h.t.Helper()
	if h.style == cowcommon.SharedRoot {
		opts.RootStyle = h.style
		require.NoError(h.t, h.backend.Clone(h.t.Context(), layer, lowest, opts))
		return
	}
	require.NoError(h.t, h.backend.Create(h.t.Context(), layer, opts))
}

// image makes an empty layer for others to be cloned from, with a root of its own.
func (h home) image(layer string) {
	h.t.Helper()
	require.NoError(h.t, h.backend.Create(h.t.Context(), layer, cowcommon.VolumeOptions{}))
}

// clone makes a layer from another.
func (h home) clone(layer, source string) {
	h.t.Helper()
	require.NoError(h.t, h.backend.Clone(h.t.Context(), layer, source, cowcommon.VolumeOptions{RootStyle: h.style}))
}

// assertStyle asserts that volumes have the root style of the home.
func (h home) assertStyle(volumes ...string) {
	h.t.Helper()
	for _, volume := range volumes {
		v, err := h.backend.Stat(h.t.Context(), volume)
		require.NoError(h.t, err)
		assert.Equal(h.t, h.style, v.RootStyle, volume)
	}
}

func (h home) put(layer, name, data string) {
	h.t.Helper()
	h.edit(layer, func(dir string) {
		require.NoError(h.t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(h.t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
	})
}

func (h home) remove(layer, name string) {
	h.t.Helper()
	h.edit(layer, func(dir string) { require.NoError(h.t, os.RemoveAll(filepath.Join(dir, name))) })
}

// get reads a file of a layer, "" if it is not there.
func (h home) get(layer, name string) (content string) {
	h.t.Helper()
	h.edit(layer, func(dir string) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(h.t, err)
		}
		content = string(data)
	})
	return content
}

// layers lists the volumes that are no moments, and counts those that are.
func (h home) layers() (layers []string, moments int) {
	h.t.Helper()
	for v, err := range h.backend.Volumes(h.t.Context()) {
		require.NoError(h.t, err)
		if live.IsMoment(v.Name) {
			moments++
		} else if v.Name != lowest {
			layers = append(layers, v.Name)
		}
	}
	slices.Sort(layers)
	return layers, moments
}

// names lists the snapshots of a layer.
func (h home) names(layer string) (names []string) {
	h.t.Helper()
	snapshots, err := h.Snapshots(h.t.Context(), layer)
	require.NoError(h.t, err)
	for _, s := range snapshots {
		names = append(names, s.Name)
	}
	return names
}

// assertClean asserts that nothing is left but these layers, and the moments that are recorded.
func (h home) assertClean(moments int, layers ...string) {
	h.t.Helper()
	require.NoError(h.t, h.Sweep(h.t.Context()))
	got, n := h.layers()
	assert.Equal(h.t, layers, got)
	assert.Equal(h.t, moments, n, "moments")
	for dir, want := range map[string]int{"moments": moments, "pending": 0} {
		entries, err := os.ReadDir(filepath.Join(h.records, dir))
		require.NoError(h.t, err)
		assert.Len(h.t, entries, want, dir)
	}
}

var errCrash = errors.New("crash")

// failing is a Backend without Forker and Exchanger of which left calls succeed, and none after these. A negative left
// stands for all. It gives up a rename or an exchange whose context has ended.
type failing struct {
	cowcommon.Backend
	left int
}

func (f *failing) call(do func() error) error {
	if f.left == 0 {
		return errCrash
	}
	f.left--
	return do()
}

func (f *failing) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	return f.call(func() error { return f.Backend.Clone(ctx, name, source, opts) })
}

func (f *failing) Remove(ctx context.Context, name string) error {
	return f.call(func() error { return f.Backend.Remove(ctx, name) })
}

func (f *failing) Seal(ctx context.Context, name string) error {
	return f.call(func() error { return cowcommon.Seal(ctx, f.Backend, name) })
}

func (f *failing) SealAsIs(ctx context.Context, name string) error {
	return f.call(func() error { return cowcommon.SealAsIs(ctx, f.Backend, name) })
}

func (f *failing) SetRootStyle(ctx context.Context, name string, style cowcommon.RootStyle) error {
	return f.call(func() error { return cowcommon.SetRootStyle(ctx, f.Backend, name, style) })
}

func (f *failing) Rename(ctx context.Context, name, to string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.call(func() error { return cowcommon.Rename(ctx, f.Backend, name, to) })
}

func (f *failing) Usage(ctx context.Context, name string) (quota.Usage, error) {
	return cowcommon.Usage(ctx, f.Backend, name)
}

func (f *failing) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	return f.call(func() error { return cowcommon.SetLimit(ctx, f.Backend, name, limit) })
}

func (f *failing) Sync(ctx context.Context, name string) error {
	return f.call(func() error { return f.Backend.Sync(ctx, name) })
}

// failingNative is failing with Forker and Exchanger.
type failingNative struct{ *failing }

func (f failingNative) Fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	return f.call(func() error {
		// A crash may leave some of names.
		some := names
		if f.left == 0 && len(names) > 1 {
			some = names[:1]
		}
		err := cowcommon.Fork(ctx, f.Backend, source, moment, some, opts)
		if err == nil && len(some) < len(names) {
			err = errCrash
		}
		return err
	})
}

func (f failingNative) CheckWhole(ctx context.Context, name string) error {
	return cowcommon.CheckWhole(ctx, f.Backend, name)
}

func (f failingNative) Exchange(ctx context.Context, name, other string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.call(func() error { return cowcommon.Exchange(ctx, f.Backend, name, other) })
}

// crashing makes homes, and the Backends that fail.
type crashing struct {
	home func(t *testing.T) home
	wrap func(*failing) cowcommon.Backend
}

func byClones(f *failing) cowcommon.Backend { return f }

// onBtrfs are Backends with and without Forker and Exchanger.
func onBtrfs() map[string]crashing {
	plain := func(t *testing.T) home { return newHome(t) }
	shared := func(t *testing.T) home { return openHome(t, cowcommon.SharedRoot) }
	native := func(f *failing) cowcommon.Backend { return failingNative{f} }
	return map[string]crashing{
		"native":           {plain, native},
		"by clones":        {plain, byClones},
		"shared native":    {shared, native},
		"shared by clones": {shared, byClones},
	}
}

// eachCrash runs do with Backends that fail for good after each number of calls, until do succeeds. After each failure
// check looks at the remains.
func eachCrash(t *testing.T, kinds map[string]crashing, begin func(h home), do func(h home) error, check func(h home, done bool)) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				require.Less(t, n, 40)
				done := false
				t.Run("", func(t *testing.T) {
					h := kind.home(t)
					begin(h)
					err := do(h.over(kind.wrap(&failing{Backend: h.backend, left: n})))
					done = err == nil
					if !done {
						require.ErrorIs(t, err, errCrash)
					}
					check(h.over(kind.wrap(&failing{Backend: h.backend, left: -1})), done)
				})
				if done || t.Failed() {
					break
				}
			}
		})
	}
}
