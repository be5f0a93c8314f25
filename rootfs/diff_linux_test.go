package rootfs

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// container prepares a snapshot of an image and changes a bit of everything in it.
func (h *host) container(key string, image digest.Digest) {
	h.t.Helper()
	mounts, err := h.real.Prepare(h.t.Context(), key, image.String())
	require.NoError(h.t, err)
	h.mounted(mounts, func(dir string) {
		require.NoError(h.t, os.WriteFile(filepath.Join(dir, "dir/changed"), []byte("by the container"), 0o600))
		require.NoError(h.t, os.WriteFile(filepath.Join(dir, "made"), []byte("by the container"), 0o644))
		require.NoError(h.t, os.Remove(filepath.Join(dir, "added")))
		require.NoError(h.t, os.Symlink("made", filepath.Join(dir, "dir/link")))
		require.NoError(h.t, os.Chown(filepath.Join(dir, "dir/kept"), 1, 2))
	})
}

// layerOf is a layer of a blob.
func (h *host) layerOf(blob ocispec.Descriptor) Layer {
	h.t.Helper()
	r, err := h.store.ReaderAt(h.t.Context(), blob)
	require.NoError(h.t, err)
	defer r.Close()
	plain, _, err := layertar.Decompress(content.NewReader(r))
	require.NoError(h.t, err)
	defer plain.Close()
	id, err := digest.FromReader(plain)
	require.NoError(h.t, err)
	return Layer{Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: id}, Blob: blob}
}

// A layer of a snapshot gives the same tree where it is applied, of whichever kind the snapshot is.
func TestDiff(t *testing.T) {
	h := newHost(t)
	ctx := t.Context()
	image := h.image()
	chain := diffIDs(h.layers())
	h.container("container", image)
	before := h.keys()
	differ := FromComparer(h.differ)

	active, err := Diff(ctx, "container", "upload", h.sn, differ)
	require.NoError(t, err)
	assert.Equal(t, ocispec.MediaTypeImageLayerGzip, active.MediaType)
	h.assertOnly(before...)
	again, err := Diff(ctx, "container", "", h.sn, differ)
	require.NoError(t, err)
	assert.Equal(t, active, again)
	assert.EqualValues(t, 2, h.differ.CompareStats().Native)

	layer := h.layerOf(active)
	applied, err := ApplyLayer(ctx, layer, chain, h.sn, h.native(nil))
	require.NoError(t, err)
	assert.True(t, applied)
	name := chainIDs(append(h.layers(), layer))[3]

	require.NoError(t, h.real.Commit(ctx, "committed", "container"))
	before = h.keys()
	h.in(name, func(a string) {
		h.in("committed", func(b string) { treecmp.Equal(t, a, b, treecmp.Options{WholeSeconds: true}) })
	})
	committed, err := Diff(ctx, "committed", "", h.sn, differ)
	require.NoError(t, err)
	assert.Equal(t, active, committed)

	_, err = h.real.View(ctx, "view", "committed")
	require.NoError(t, err)
	view, err := Diff(ctx, "view", "", h.sn, differ)
	require.NoError(t, err)
	assert.NotEqual(t, active, view, "a view has not changed anything")
	require.NoError(t, h.real.Remove(ctx, "view"))
	h.assertOnly(before...)
}

// A snapshot without a parent is all new.
func TestDiffOfBase(t *testing.T) {
	h := newHost(t)
	mounts, err := h.real.Prepare(t.Context(), "unpack", "")
	require.NoError(t, err)
	h.mounted(mounts, func(dir string) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, "dir"), 0o750))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "dir/file"), []byte("base"), 0o640))
	})
	require.NoError(t, h.real.Commit(t.Context(), "base", "unpack"))
	desc, err := Diff(t.Context(), "base", "", h.sn, FromComparer(h.differ))
	require.NoError(t, err)
	h.assertOnly("base")

	name, err := ApplyLayers(t.Context(), []Layer{h.layerOf(desc)}, h.sn, h.native(nil))
	require.NoError(t, err)
	h.assertOnly("base", name.String())
	h.in("base", func(a string) {
		h.in(name.String(), func(b string) { treecmp.Equal(t, a, b, treecmp.Options{WholeSeconds: true}) })
	})
}

// Options of containerd's differs have the last word, and its own mounts the volumes that Cowshed's finds without.
func TestDiffOptions(t *testing.T) {
	h := newHost(t)
	h.container("container", h.image())
	before := h.keys()
	for name, c := range map[string]diff.Comparer{"Cowshed": h.differ, "containerd": walking.NewWalkingDiff(h.store)} {
		desc, err := Diff(t.Context(), "container", "", h.sn, FromComparer(c, diff.WithMediaType(ocispec.MediaTypeImageLayer)))
		require.NoError(t, err, name)
		assert.Equal(t, ocispec.MediaTypeImageLayer, desc.MediaType, name)
		h.assertOnly(before...)
	}
}

// differFunc is a function as a MountDiffer.
type differFunc func(ctx context.Context, lower, upper []mount.Mount, media, ref string) (ocispec.Descriptor, error)

func (f differFunc) DiffMounts(ctx context.Context, lower, upper []mount.Mount, media, ref string) (ocispec.Descriptor, error) {
	return f(ctx, lower, upper, media, ref)
}

// An error leaves no views.
func TestDiffFails(t *testing.T) {
	h := newHost(t)
	h.container("committed-key", h.image())
	require.NoError(t, h.real.Commit(t.Context(), "committed", "committed-key"))
	_, err := h.real.Prepare(t.Context(), "active", "committed")
	require.NoError(t, err)
	before := h.keys()

	views := 0
	for name, c := range map[string]struct {
		key         string
		want        error
		cancel      bool
		panic       bool
		fault, lost func(op, key string) error
	}{
		"no snapshot":          {key: "nothing", want: errdefs.ErrNotFound},
		"differ fails, active": {key: "active", want: errFault},
		"differ fails":         {key: "committed", want: errFault},
		"cancelled":            {key: "committed", want: context.Canceled, cancel: true},
		"differ panics":        {key: "committed", panic: true},
		"mounts fail":          {key: "active", want: errFault, fault: failing("mounts")},
		"view fails":           {key: "active", want: errFault, fault: failing("view")},
		"view loses answer":    {key: "active", want: errFault, lost: failing("view")},
		"second view fails":    {key: "committed", want: errFault, fault: second("view", &views)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			views = 0
			h.sn.fault, h.sn.lost = c.fault, c.lost
			differ := differFunc(func(ctx context.Context, lower, upper []mount.Mount, media, ref string) (ocispec.Descriptor, error) {
				assert.Equal(t, "upload", ref)
				assert.True(t, lower[0].ReadOnly())
				assert.Equal(t, c.key == "committed", upper[0].ReadOnly())
				if c.cancel {
					cancel()
					return ocispec.Descriptor{}, ctx.Err()
				}
				if c.panic {
					panic(errFault)
				}
				return ocispec.Descriptor{}, errFault
			})
			if c.panic {
				assert.PanicsWithValue(t, errFault, func() { _, _ = Diff(ctx, c.key, "upload", h.sn, differ) })
			} else {
				desc, err := Diff(ctx, c.key, "upload", h.sn, differ)
				assert.ErrorIs(t, err, c.want)
				assert.ErrorContains(t, err, c.key)
				assert.Zero(t, desc)
			}
			h.assertOnly(before...)
		})
	}
}

// second lets the second request of one kind fail.
func second(op string, n *int) func(string, string) error {
	return func(got, _ string) error {
		if got == op {
			if *n++; *n == 2 {
				return errFault
			}
		}
		return nil
	}
}
