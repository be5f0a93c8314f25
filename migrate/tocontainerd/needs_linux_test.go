package tocontainerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/snapshotter"
)

// TestLayersWithoutImage: containerd collects things that nothing needs, and nobody misses them: neither a layer without image and
// container, nor the blob of a layer whose image was removed below a container.
func TestLayersWithoutImage(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	s.inv.Containers[0].Image = ""
	s.inv.Images = nil // base-id and top-id are the container's, other-id is nobody's
	target := h.target(h.options(Moby))
	empty := h.state(Moby)
	h.run(target)
	h.collect()
	_, err := target.layerBlob(h.in(Moby), s.layerOf("top-id").DiffID)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = target.snapshots.Stat(h.in(Moby), s.layerOf("top-id").ChainID.String())
	require.NoError(t, err)
	_, err = target.snapshots.Stat(h.in(Moby), s.layerOf("other-id").ChainID.String())
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	another := h.target(target.opts)
	_, err = h.migration(another).Verify(t.Context(), nil)
	requireNoProblem(t, err)
	for i := range s.inv.Layers { // as finish asks
		has, err := another.Has(t.Context(), migrate.Item{Layer: &s.inv.Layers[i]})
		require.NoError(t, err)
		assert.True(t, has, s.inv.Layers[i].ID)
	}
	_, err = h.migration(another).Undo(t.Context(), nil)
	requireNoProblem(t, err)
	require.NoError(t, another.Close())
	assert.Equal(t, empty, h.state(Moby))
}

// TestBlobSize: the plan says how much space blobs take, apart from the data, and counts those alone that will be written.
func TestBlobSize(t *testing.T) {
	h := newHost(t)
	s := h.newSource(subvolumes)
	plan := func(target *Target) *migrate.Plan {
		p, err := h.migration(target).Plan(t.Context())
		require.NoError(t, err)
		assert.Zero(t, p.Bytes, "volumes are cloned")
		return p
	}
	target := h.target(h.options(Moby))
	assert.Equal(t, int64(3*1000), plan(target).Blobs)
	images := s.inv.Images
	s.inv.Images = nil
	assert.Zero(t, plan(h.target(h.options(Moby))).Blobs, "no image needs a blob")
	s.inv.Images = images

	h.run(target)
	assert.Zero(t, plan(h.target(h.options(Moby))).Blobs)
	require.NoError(t, target.snapshots.Remove(h.in(Moby), theContainer))
	require.NoError(t, target.snapshots.Remove(h.in(Moby), theContainer+initSuffix))
	layer := s.layerOf("top-id")
	require.NoError(t, target.snapshots.Remove(h.in(Moby), layer.ChainID.String()))
	p := plan(h.target(h.options(Moby)))
	assert.Zero(t, p.Blobs, "the blob of a layer whose snapshot is missing is there")
}

// TestOrigin: another volume than the source has opened is not adopted, and leaves nothing.
func TestOrigin(t *testing.T) {
	h := newHost(t)
	s := h.newSource(subvolumes)
	target := h.target(h.options(Moby))
	require.NoError(t, target.Check(t.Context(), s, &s.inv))
	layer := s.layerOf("base-id")
	c, err := s.Open(t.Context(), layer.ID)
	require.NoError(t, err)
	defer c.Close()
	// Since it was opened, a part of its path has become a symbolic link.
	elsewhere := filepath.Join(h.mnt, "elsewhere")
	require.NoError(t, os.Mkdir(elsewhere, 0o700))
	s.run("btrfs", "subvolume", "create", filepath.Join(elsewhere, layer.ID))
	require.NoError(t, os.Rename(s.dir, s.dir+".moved"))
	require.NoError(t, os.Symlink(elsewhere, s.dir))
	parts, err := s.Parts(t.Context(), layer.ID)
	require.NoError(t, err)
	require.ErrorIs(t, target.MakeLayer(t.Context(), layer, c, parts), errdefs.ErrDataLoss)
	assert.Empty(t, slices.DeleteFunc(h.state(Moby), isLease))
}

func isLease(line string) bool { return len(line) > 5 && line[:5] == "lease" }

// TestVerifyAdopted: the process that has adopted a volume compares nothing. Another one does.
func TestVerifyAdopted(t *testing.T) {
	h := newHost(t)
	s := h.newSource(subvolumes)
	target := h.target(h.options(Moby))
	h.run(target)
	layer := s.layerOf("mount")
	opened := counting{Source: s}
	require.NoError(t, target.Verify(t.Context(), migrate.Item{Layer: layer}, &opened))
	assert.Zero(t, opened.n)
	require.NoError(t, h.target(target.opts).Verify(t.Context(), migrate.Item{Layer: layer}, &opened))
	assert.Equal(t, 1, opened.n)
}

// counting counts the layers that are opened.
type counting struct {
	migrate.Source
	n int
}

func (c *counting) Open(ctx context.Context, layer string) (*migrate.Content, error) {
	c.n++
	return c.Source.Open(ctx, layer)
}

// TestRequests: to find a blob by its labels containerd looks at all of them, and to collect garbage at everything. Neither
// is done for each layer.
func TestRequests(t *testing.T) {
	h := newHost(t)
	h.newSource(overlays)
	target := h.target(h.options(Moby))
	walks, collections := countWalks{Store: target.content}, countCollections{Manager: target.leases}
	target.content, target.leases = &walks, &collections
	h.run(target)
	assert.Equal(t, 1, walks.n)
	collections.n = 0
	_, err := h.migration(target).Undo(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, target.Close())
	assert.LessOrEqual(t, collections.n, 2, "the end of the lease, and the end of Undo")
}

type countWalks struct {
	content.Store
	n int
}

func (c *countWalks) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	c.n++
	return c.Store.Walk(ctx, fn, filters...)
}

type countCollections struct {
	leases.Manager
	n int
}

func (c *countCollections) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	if len(opts) > 0 {
		c.n++
	}
	return c.Manager.Delete(ctx, lease, opts...)
}

// TestSpace: a plan promises clones only where volumes can be adopted, and Check finds too little space.
func TestSpace(t *testing.T) {
	h := newHost(t)
	s := h.newSource(subvolumes)
	target := h.target(h.options(Moby))
	s.layerOf("base-id").Size = 1 << 60
	require.NoError(t, target.Check(t.Context(), s, &s.inv), "it is cloned")
	root, offers := target.root, target.offers
	target.root, target.offers = t.TempDir(), nil // another filesystem
	require.ErrorIs(t, target.Check(t.Context(), s, &s.inv), unix.ENOSPC)
	target.root, target.offers = root, offers
	h.run(target)
	target.root = t.TempDir()
	require.NoError(t, target.Check(t.Context(), s, &s.inv), "it is there")
}

// elsewhere is Cowshed with volumes that are not in its root, and adopts none.
type elsewhere struct {
	snapshotter.Offerer
	free uint64
}

func (elsewhere) CheckOffer(context.Context, string, string, string, string) error {
	return errdefs.ErrNotImplemented
}

func (e elsewhere) CheckRoom(_ context.Context, bytes uint64) error {
	if bytes > e.free {
		return errdefs.ErrResourceExhausted
	}
	return nil
}

// TestSpaceElsewhere: the space is that of the volumes, and so is the filesystem that decides about reflinks.
func TestSpaceElsewhere(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	target := h.target(h.options(Moby))
	require.NoError(t, target.Check(t.Context(), s, &s.inv))
	how := func() migrate.How {
		content, err := s.Open(t.Context(), "base-id")
		require.NoError(t, err)
		defer func() { assert.NoError(t, content.Close()) }()
		how, _, err := target.How(t.Context(), s.layerOf("base-id"), content, migrate.Coming{})
		require.NoError(t, err)
		return how
	}
	assert.Equal(t, migrate.Reflinked, how())
	offers := target.offers
	target.offers = elsewhere{offers, 1 << 50}
	assert.Equal(t, migrate.Copied, how(), "the root is on the filesystem of the source, and the volumes are not")
	s.layerOf("base-id").Size = 1 << 49
	require.NoError(t, target.Check(t.Context(), s, &s.inv), "the filesystem of the root has less")
	s.layerOf("base-id").Size = 1 << 50
	s.layerOf("top-id").Size = 1 << 50
	require.ErrorIs(t, target.Check(t.Context(), s, &s.inv), unix.ENOSPC)
}

// TestFullContainer: a container that is at its limit comes along, and has the limit afterwards.
func TestFullContainer(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	const limit = 256 << 10
	s.layerOf("mount").Limit = limit
	for n := range 500 { // they are in metadata, which is not shared
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, "mount", fmt.Sprint("small", n)), make([]byte, 1800), 0o600))
	}
	target := h.target(h.options(Moby))
	h.run(target)
	info, err := target.snapshots.Stat(h.in(Moby), theContainer)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{LayerLabel: "mount", snapshots.LabelSnapshotMaxSize: fmt.Sprint(limit)}, info.Labels)
	volume, err := h.backend.Stat(t.Context(), h.volumeOf(Moby, info))
	require.NoError(t, err)
	assert.Equal(t, uint64(limit), volume.Limit.Bytes)

	_, err = h.migration(target).Undo(t.Context(), nil)
	require.NoError(t, err)
	target.offers = nil // no limit is changed later
	_, err = h.migration(target).Run(t.Context(), nil)
	var partial *migrate.PartialError
	require.ErrorAs(t, err, &partial, "it is a problem of that container")
	assert.Len(t, partial.Problems, 2)
	h.requireImages(target)
}
