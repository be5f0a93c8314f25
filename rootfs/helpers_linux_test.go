package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/snapshotter"
)

var errFault = errors.New("fault")

// host is Cowshed's snapshotter on a btrfs of its own, with its differ and a content store.
type host struct {
	t      *testing.T
	mnt    string
	real   *snapshotter.Snapshotter
	differ *snapshotter.Differ
	store  content.Store
	// sn is the snapshotter as a client sees it, with faults on request.
	sn *client
}

func newHost(t *testing.T) *host {
	t.Helper()
	// It leaves a descriptor to the garbage collector, so it comes before the check for leaks.
	store, err := contentstore.Open(t.TempDir())
	require.NoError(t, err)
	testfs.CheckLeaks(t)
	mnt := testfs.Btrfs(t)
	backend, err := btrfs.Open(t.Context(), filepath.Join(mnt, "volumes"), btrfs.Options{})
	require.NoError(t, err)
	sn, err := snapshotter.New(t.Context(), filepath.Join(mnt, "snapshotter"), backend, snapshotter.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sn.Close()) })
	return &host{
		t: t, mnt: mnt, real: sn, differ: snapshotter.NewDiffer(sn, store), store: store,
		sn: &client{Snapshotter: sn, t: t},
	}
}

// client passes requests on as a remote snapshotter does: not those whose context has ended, and removals only if
// they cannot take forever. fault and lost say which of them fail: before they are done, or only for the client.
type client struct {
	snapshots.Snapshotter
	t     *testing.T
	fault func(op, key string) error
	lost  func(op, key string) error

	mu       sync.Mutex
	prepared []string
}

func (c *client) call(ctx context.Context, op, key string, do func() error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if c.fault != nil {
		if err := c.fault(op, key); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if c.lost != nil {
		return c.lost(op, key)
	}
	return nil
}

func (c *client) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = c.call(ctx, "stat", key, func() error { info, err = c.Snapshotter.Stat(ctx, key); return err })
	return info, err
}

func (c *client) Mounts(ctx context.Context, key string) (m []mount.Mount, err error) {
	err = c.call(ctx, "mounts", key, func() error { m, err = c.Snapshotter.Mounts(ctx, key); return err })
	return m, err
}

func (c *client) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) (m []mount.Mount, err error) {
	c.mu.Lock()
	c.prepared = append(c.prepared, key)
	c.mu.Unlock()
	err = c.call(ctx, "prepare", key, func() error { m, err = c.Snapshotter.Prepare(ctx, key, parent, opts...); return err })
	return m, err
}

func (c *client) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (m []mount.Mount, err error) {
	err = c.call(ctx, "view", key, func() error { m, err = c.Snapshotter.View(ctx, key, parent, opts...); return err })
	return m, err
}

func (c *client) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return c.call(ctx, "commit", name, func() error { return c.Snapshotter.Commit(ctx, name, key, opts...) })
}

func (c *client) Remove(ctx context.Context, key string) error {
	_, bounded := ctx.Deadline()
	assert.True(c.t, bounded, "removal of %s has no time limit", key)
	return c.call(ctx, "remove", key, func() error { return c.Snapshotter.Remove(ctx, key) })
}

// failing lets each request of one kind fail.
func failing(op string) func(string, string) error {
	return func(got, _ string) error {
		if got == op {
			return errFault
		}
		return nil
	}
}

// applierFunc is a function as an Applier.
type applierFunc func(context.Context, ocispec.Descriptor, []mount.Mount) (ocispec.Descriptor, error)

func (f applierFunc) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
	return f(ctx, desc, mounts)
}

// native is Cowshed's own applier. Unless calls is nil, it counts the applied layers there.
func (h *host) native(calls *counts) Applier {
	return applierFunc(func(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
		if calls != nil {
			calls.add(desc.Digest)
		}
		return FromApplier(h.differ).Apply(ctx, desc, mounts)
	})
}

// counts holds numbers of calls by blob.
type counts struct {
	mu     sync.Mutex
	byBlob map[digest.Digest]int
}

func (c *counts) add(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byBlob == nil {
		c.byBlob = make(map[digest.Digest]int)
	}
	c.byBlob[d]++
}

func (c *counts) of(d digest.Digest) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byBlob[d]
}

// layer stores a layer of files, whose names end in "/" if they are directories.
func (h *host) layer(mediaType string, files map[string]string) Layer {
	h.t.Helper()
	var plain, blob bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}
		if strings.HasSuffix(name, "/") {
			header.Typeflag, header.Mode = tar.TypeDir, 0o755
		}
		require.NoError(h.t, w.WriteHeader(header))
		_, err := io.WriteString(w, files[name])
		require.NoError(h.t, err)
	}
	require.NoError(h.t, w.Close())
	format := map[string]layertar.Format{
		ocispec.MediaTypeImageLayer: layertar.Plain, ocispec.MediaTypeImageLayerGzip: layertar.Gzip, ocispec.MediaTypeImageLayerZstd: layertar.Zstd,
	}[mediaType]
	compressor, err := layertar.Compress(&blob, format, 0)
	require.NoError(h.t, err)
	_, err = compressor.Write(plain.Bytes())
	require.NoError(h.t, err)
	require.NoError(h.t, compressor.Close())
	l := Layer{
		Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(plain.Bytes()), Size: int64(plain.Len())},
		Blob: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len())},
	}
	require.NoError(h.t, content.WriteBlob(h.t.Context(), h.store, l.Blob.Digest.String(), &blob, l.Blob))
	return l
}

// layers are three layers, of which each changes those below.
func (h *host) layers() []Layer {
	h.t.Helper()
	return []Layer{
		h.layer(ocispec.MediaTypeImageLayer, map[string]string{"dir/": "", "dir/kept": "kept", "dir/changed": "old", "removed": "old"}),
		h.layer(ocispec.MediaTypeImageLayerGzip, map[string]string{"dir/changed": "new", ".wh.removed": ""}),
		h.layer(ocispec.MediaTypeImageLayerZstd, map[string]string{"added": "added"}),
	}
}

func diffIDs(layers []Layer) []digest.Digest {
	ids := make([]digest.Digest, 0, len(layers))
	for _, l := range layers {
		ids = append(ids, l.Diff.Digest)
	}
	return ids
}

// chainIDs are the names of the snapshots of layers.
func chainIDs(layers []Layer) []string {
	names := make([]string, 0, len(layers))
	for _, id := range identity.ChainIDs(diffIDs(layers)) {
		names = append(names, id.String())
	}
	return names
}

// image applies layers and returns their chain ID.
func (h *host) image() digest.Digest {
	h.t.Helper()
	id, err := ApplyLayers(h.t.Context(), h.layers(), h.sn, h.native(nil))
	require.NoError(h.t, err)
	return id
}

// assertOnly asserts that there are these snapshots, and no other ones and no other volumes.
func (h *host) assertOnly(keys ...string) {
	h.t.Helper()
	got, volumes := []string{}, 0
	require.NoError(h.t, h.real.Walk(h.t.Context(), func(_ context.Context, info snapshots.Info) error {
		got = append(got, info.Name)
		if info.Kind != snapshots.KindView {
			volumes++
		}
		return nil
	}))
	assert.ElementsMatch(h.t, keys, got)
	require.NoError(h.t, h.real.Cleanup(h.t.Context()))
	entries, err := os.ReadDir(filepath.Join(h.mnt, "volumes", "subvolumes"))
	require.NoError(h.t, err)
	assert.Len(h.t, entries, volumes, "volumes")
}

// keys lists the snapshots.
func (h *host) keys() []string {
	h.t.Helper()
	keys := []string{}
	require.NoError(h.t, h.real.Walk(h.t.Context(), func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}))
	return keys
}

// mounted calls do with a directory on which mounts are mounted as long as do runs.
func (h *host) mounted(mounts []mount.Mount, do func(dir string)) {
	h.t.Helper()
	dir := h.t.TempDir()
	require.NoError(h.t, HostMounter{}.Mount(dir, mounts...))
	defer func() { require.NoError(h.t, HostMounter{}.Unmount(dir)) }()
	do(dir)
}

// in calls do with the tree of a committed snapshot.
func (h *host) in(name string, do func(dir string)) {
	h.t.Helper()
	mounts, err := h.real.View(h.t.Context(), "test of "+name, name)
	require.NoError(h.t, err)
	defer func() { require.NoError(h.t, h.real.Remove(h.t.Context(), "test of "+name)) }()
	h.mounted(mounts, do)
}

// assertImage asserts that a tree is that of the layers.
func assertImage(t *testing.T, dir string) {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = string(data)
		return err
	}))
	assert.Equal(t, map[string]string{"dir/kept": "kept", "dir/changed": "new", "added": "added"}, files)
}
