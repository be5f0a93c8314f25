package rootfs

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/internal/testfs"
)

func TestApplyLayers(t *testing.T) {
	h := newHost(t)
	layers := h.layers()
	var calls counts
	for range 2 { // the second time nothing is applied
		id, err := ApplyLayers(t.Context(), layers, h.sn, h.native(&calls))
		require.NoError(t, err)
		assert.Equal(t, identity.ChainID(diffIDs(layers)), id)
		for _, l := range layers {
			assert.Equal(t, 1, calls.of(l.Blob.Digest))
		}
	}
	names := chainIDs(layers)
	h.assertOnly(names...)
	h.in(names[2], func(dir string) { assertImage(t, dir) })
}

// Containerd's own applier mounts the volumes that Cowshed's finds without.
func TestApplyLayersByContainerd(t *testing.T) {
	h := newHost(t)
	layers := h.layers()
	var progress sync.Map
	a := FromApplier(apply.NewFileSystemApplier(h.store), diff.WithProgress(func(d ocispec.Descriptor, _ int64) { progress.Store(d.Digest, true) }))
	id, err := ApplyLayers(t.Context(), layers, h.sn, a)
	require.NoError(t, err)
	h.in(id.String(), func(dir string) { assertImage(t, dir) })
	for _, l := range layers {
		_, ok := progress.Load(l.Blob.Digest)
		assert.True(t, ok, "options are passed on")
	}
}

func TestApplyNoLayers(t *testing.T) {
	id, err := ApplyLayers(t.Context(), nil, nil, nil)
	assert.NoError(t, err)
	assert.Empty(t, id)
}

// Existing layers below are not applied again, and lists of digests are not written to.
func TestApplyLayer(t *testing.T) {
	h := newHost(t)
	layers := h.layers()
	names := chainIDs(layers)
	ids := diffIDs(layers)
	var calls counts
	for i, l := range layers {
		for _, want := range []bool{true, false} {
			chain := append(slices.Clone(ids[:i]), "next in the caller's array")
			applied, err := ApplyLayer(t.Context(), l, chain[:i], h.sn, h.native(&calls))
			require.NoError(t, err)
			assert.Equal(t, want, applied)
			assert.Equal(t, append(slices.Clone(ids[:i]), "next in the caller's array"), chain)
			assert.Equal(t, 1, calls.of(l.Blob.Digest))
		}
	}
	h.assertOnly(names...)

	require.NoError(t, h.real.Remove(t.Context(), names[2]))
	_, err := ApplyLayers(t.Context(), layers, h.sn, h.native(&calls))
	require.NoError(t, err)
	assert.Equal(t, []int{1, 1, 2}, []int{calls.of(layers[0].Blob.Digest), calls.of(layers[1].Blob.Digest), calls.of(layers[2].Blob.Digest)})
	h.in(names[2], func(dir string) { assertImage(t, dir) })
}

// Layers that cannot be applied change nothing.
func TestApplyBadRequests(t *testing.T) {
	h := newHost(t)
	layers := h.layers()
	taken := h.layer(ocispec.MediaTypeImageLayer, map[string]string{"taken": ""})
	_, err := h.real.Prepare(t.Context(), taken.Diff.Digest.String(), "")
	require.NoError(t, err)
	before := h.keys()
	for name, c := range map[string]struct {
		layer Layer
		chain []digest.Digest
		want  error
	}{
		"no digest":          {Layer{Blob: layers[0].Blob}, nil, errdefs.ErrInvalidArgument},
		"bad digest":         {Layer{Diff: ocispec.Descriptor{Digest: "sha256:../.."}, Blob: layers[0].Blob}, nil, errdefs.ErrInvalidArgument},
		"bad digest below":   {layers[1], []digest.Digest{"sha256:1"}, errdefs.ErrInvalidArgument},
		"chain is not there": {layers[1], diffIDs(layers[:1]), errdefs.ErrNotFound},
		"blob is not there":  {Layer{Diff: layers[0].Diff, Blob: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("-"), Size: 1}}, nil, errdefs.ErrNotFound},
		"another digest":     {Layer{Diff: layers[1].Diff, Blob: layers[0].Blob}, nil, errdefs.ErrFailedPrecondition},
		"name is taken":      {taken, nil, errdefs.ErrFailedPrecondition},
	} {
		applied, err := ApplyLayer(t.Context(), c.layer, c.chain, h.sn, h.native(nil))
		assert.ErrorIs(t, err, c.want, name)
		assert.False(t, applied, name)
		assert.Equal(t, before, h.keys(), name)
	}
	h.assertOnly(before...)
	_, err = ApplyLayers(t.Context(), []Layer{layers[0], {}}, h.sn, h.native(nil))
	assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	h.assertOnly(before...)
}

// barrier holds back the first callers until there are as many as it waits for.
type barrier struct {
	mu      sync.Mutex
	missing int
	open    chan struct{}
}

func newBarrier(n int) *barrier { return &barrier{missing: n, open: make(chan struct{})} }

func (b *barrier) wait(ctx context.Context) error {
	b.mu.Lock()
	if b.missing--; b.missing == 0 {
		close(b.open)
	}
	b.mu.Unlock()
	select {
	case <-b.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// All extract the lowest layer at once, so that all but one find out when they commit it that another was faster.
func TestApplyConcurrently(t *testing.T) {
	const clients = 8
	h := newHost(t)
	layers := h.layers()
	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	var calls counts
	extracting := newBarrier(clients)
	a := applierFunc(func(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
		if err := extracting.wait(ctx); err != nil {
			return ocispec.Descriptor{}, err
		}
		return h.native(&calls).Apply(ctx, desc, mounts)
	})
	var ids [clients]digest.Digest
	var group errgroup.Group
	for i := range clients {
		group.Go(func() (err error) {
			ids[i], err = ApplyLayers(ctx, layers, h.sn, a)
			return err
		})
	}
	require.NoError(t, group.Wait())
	for _, id := range ids {
		assert.Equal(t, identity.ChainID(diffIDs(layers)), id)
	}
	assert.Equal(t, clients, calls.of(layers[0].Blob.Digest))
	for _, key := range h.sn.prepared {
		assert.True(t, strings.HasPrefix(key, snapshots.UnpackKeyPrefix+"-"), key)
	}
	slices.Sort(h.sn.prepared)
	assert.Len(t, slices.Compact(h.sn.prepared), len(h.sn.prepared), "keys are unique")
	h.assertOnly(chainIDs(layers)...)
	h.in(ids[0].String(), func(dir string) { assertImage(t, dir) })
}

// One of those that apply one layer at once has applied it.
func TestApplyLayerConcurrently(t *testing.T) {
	const clients = 8
	h := newHost(t)
	layer := h.layers()[0]
	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	extracting := newBarrier(clients)
	a := applierFunc(func(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
		if err := extracting.wait(ctx); err != nil {
			return ocispec.Descriptor{}, err
		}
		return h.native(nil).Apply(ctx, desc, mounts)
	})
	var applied [clients]bool
	var group errgroup.Group
	for i := range clients {
		group.Go(func() (err error) {
			applied[i], err = ApplyLayer(ctx, layer, nil, h.sn, a)
			return err
		})
	}
	require.NoError(t, group.Wait())
	slices.SortFunc(applied[:], func(a, b bool) int {
		if a == b {
			return 0
		} else if a {
			return -1
		}
		return 1
	})
	assert.Equal(t, [clients]bool{true}, applied)
	h.assertOnly(layer.Diff.Digest.String())
}

// An error at any layer leaves the snapshots below, and nothing else.
func TestApplyFails(t *testing.T) {
	for name, c := range map[string]struct {
		want        error
		cancel      bool
		panic       bool
		fault, lost string
	}{
		"applier fails":        {want: errFault},
		"context is cancelled": {want: context.Canceled, cancel: true},
		"applier panics":       {panic: true},
		"commit fails":         {want: errFault, fault: "commit"},
		"prepare loses answer": {want: errFault, lost: "prepare"},
		"removal fails too":    {want: errFault, fault: "remove"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			layers := h.layers()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			top := layers[2]
			a := applierFunc(func(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
				applied, err := h.native(nil).Apply(ctx, desc, mounts)
				switch {
				case err != nil || desc.Digest != top.Blob.Digest:
					return applied, err
				case c.cancel:
					cancel()
					return ocispec.Descriptor{}, ctx.Err()
				case c.panic:
					panic(errFault)
				case c.fault != "commit":
					return ocispec.Descriptor{}, errFault
				}
				return applied, nil
			})
			_, err := ApplyLayers(ctx, layers[:2], h.sn, a)
			require.NoError(t, err)
			if c.fault != "" {
				h.sn.fault = failing(c.fault)
			}
			if c.lost != "" {
				h.sn.lost = failing(c.lost)
			}
			if c.panic {
				assert.PanicsWithValue(t, errFault, func() { _, _ = ApplyLayers(ctx, layers, h.sn, a) })
			} else {
				id, err := ApplyLayers(ctx, layers, h.sn, a)
				require.ErrorIs(t, err, c.want)
				assert.ErrorContains(t, err, top.Diff.Digest.String())
				assert.Empty(t, id)
				if c.fault == "remove" {
					assert.ErrorContains(t, err, "remove")
					assert.Len(t, h.keys(), 3)
					return
				}
			}
			h.assertOnly(chainIDs(layers)[:2]...)
		})
	}
}

// A cancelled context starts nothing.
func TestApplyCancelledBefore(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var calls counts
	layers := h.layers()
	_, err := ApplyLayers(ctx, layers, h.real, h.native(&calls))
	assert.ErrorIs(t, err, context.Canceled)
	assert.Zero(t, calls.of(layers[0].Blob.Digest))
	h.assertOnly()
}

// A layer that is garbage-collected before the next one is applied is applied again, but not for ever.
func TestApplyWhileParentsVanish(t *testing.T) {
	h := newHost(t)
	layers := h.layers()
	names := chainIDs(layers)
	vanish := 1
	h.sn.lost = func(op, key string) error {
		if op == "commit" && key == names[0] && vanish > 0 {
			vanish--
			return h.real.Remove(t.Context(), key)
		}
		return nil
	}
	var calls counts
	_, err := ApplyLayers(t.Context(), layers, h.sn, h.native(&calls))
	require.NoError(t, err)
	assert.Equal(t, 2, calls.of(layers[0].Blob.Digest))
	h.assertOnly(names...)

	for _, name := range slices.Backward(names) {
		require.NoError(t, h.real.Remove(t.Context(), name))
	}
	vanish = 1000
	_, err = ApplyLayers(t.Context(), layers, h.sn, h.native(nil))
	assert.ErrorIs(t, err, errdefs.ErrUnavailable)
	h.assertOnly()
}

// The caller that has lost the race has the snapshot that it asked for, even if its own temporary snapshot cannot be
// removed.
func TestApplyLosesRace(t *testing.T) {
	h := newHost(t)
	layer := h.layers()[0]
	a := applierFunc(func(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
		applied, err := ApplyLayer(ctx, layer, nil, h.real, h.native(nil))
		require.NoError(t, err)
		assert.True(t, applied)
		return h.native(nil).Apply(ctx, desc, mounts)
	})
	h.sn.fault = failing("remove")
	applied, err := ApplyLayer(t.Context(), layer, nil, h.sn, a)
	assert.NoError(t, err)
	assert.False(t, applied)
	assert.Len(t, h.keys(), 2)
}
