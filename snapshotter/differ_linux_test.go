package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
)

// differHost is a snapshotter with a differ and a content store.
type differHost struct {
	*host
	differ *Differ
	store  content.Store
	blobs  string // the directory of store
}

func newDifferHost(t *testing.T, opts Options, fsOpts ...testfs.BtrfsOption) *differHost {
	t.Helper()
	return newDifferHostOn(t, onBtrfs(fsOpts...), opts)
}

func newDifferHostOn(t *testing.T, fs filesystem, opts Options) *differHost {
	t.Helper()
	// It leaves a descriptor to the garbage collector, so it comes before the check for leaks.
	blobs := t.TempDir()
	store, err := contentstore.Open(blobs)
	require.NoError(t, err)
	h := newHostOn(t, fs, opts)
	return &differHost{host: h, differ: NewDiffer(h.Snapshotter, store), store: store, blobs: blobs}
}

// put stores a blob.
func (h *differHost) put(mediaType string, blob []byte) ocispec.Descriptor {
	h.t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	require.NoError(h.t, content.WriteBlob(h.t.Context(), h.store, desc.Digest.String(), bytes.NewReader(blob), desc))
	return desc
}

func (h *differHost) blob(desc ocispec.Descriptor) []byte {
	h.t.Helper()
	blob, err := content.ReadBlob(h.t.Context(), h.store, desc)
	require.NoError(h.t, err)
	return blob
}

// plain is a blob without its compression.
func (h *differHost) plain(desc ocispec.Descriptor) []byte {
	h.t.Helper()
	r, _, err := layertar.Decompress(bytes.NewReader(h.blob(desc)))
	require.NoError(h.t, err)
	defer r.Close()
	layer, err := io.ReadAll(r)
	require.NoError(h.t, err)
	return layer
}

// names lists the entries of a layer.
func (h *differHost) names(desc ocispec.Descriptor) []string {
	h.t.Helper()
	var names []string
	r := tar.NewReader(bytes.NewReader(h.plain(desc)))
	for {
		header, err := r.Next()
		if err == io.EOF {
			return names
		}
		require.NoError(h.t, err)
		names = append(names, header.Name)
	}
}

// uploads lists the running uploads.
func (h *differHost) uploads() []content.Status {
	h.t.Helper()
	statuses, err := h.store.ListStatuses(h.t.Context())
	require.NoError(h.t, err)
	return statuses
}

// tree makes an image with a bit of everything, and an active snapshot that changes a bit of everything.
func (h *differHost) tree() {
	h.t.Helper()
	h.prepare("unpack", "")
	h.in("unpack", h.fillTree)
	h.commit("image", "unpack")
	h.prepare("active", "image")
	h.in("active", h.changeTree)
}

func (h *differHost) fillTree(dir string) {
	do := func(err error) { h.t.Helper(); require.NoError(h.t, err) }
	for _, name := range []string{"etc", "usr/bin", "usr/lib/deep/down", "gone/with/all", "moved"} {
		do(os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	for name, text := range map[string]string{
		"etc/passwd": "root", "etc/shadow": "secret", "usr/bin/tool": "#!", "usr/lib/deep/down/lib": "ELF",
		"gone/with/all/file": "bye", "moved/file": "still here", "same": "same", "removed": "bye",
	} {
		do(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	do(os.Link(filepath.Join(dir, "same"), filepath.Join(dir, "etc/link")))
	do(os.Symlink("same", filepath.Join(dir, "symlink")))
}

// move renames a directory as mv(1) does: where an overlay refuses that, it copies.
func (h *differHost) move(from, to string) {
	h.t.Helper()
	out, err := exec.Command("mv", from, to).CombinedOutput()
	require.NoError(h.t, err, "%s", out)
}

func (h *differHost) changeTree(dir string) {
	do := func(err error) { h.t.Helper(); require.NoError(h.t, err) }
	do(os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root and more"), 0o600))
	do(os.WriteFile(filepath.Join(dir, "added with a longer name ☃"), []byte("new"), 0o644))
	do(os.Chown(filepath.Join(dir, "etc/shadow"), 1, 2))
	do(os.Chmod(filepath.Join(dir, "usr/bin/tool"), 0o4755))
	do(os.RemoveAll(filepath.Join(dir, "gone")))
	do(os.Remove(filepath.Join(dir, "removed")))
	h.move(filepath.Join(dir, "moved"), filepath.Join(dir, "usr/lib/moved"))
	do(os.Remove(filepath.Join(dir, "symlink")))
	do(os.Mkdir(filepath.Join(dir, "symlink"), 0o700))
	do(unix.Mkfifo(filepath.Join(dir, "symlink/fifo"), 0o640))
	do(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	do(unix.Setxattr(filepath.Join(dir, "etc/passwd"), "user.note", []byte("value"), 0))
}

// assertSameTree asserts that two snapshots hold the same tree.
func (h *differHost) assertSameTree(key, other string, opts treecmp.Options) {
	h.t.Helper()
	h.in(key, func(a string) {
		h.in(other, func(b string) { assert.True(h.t, treecmp.Equal(h.t, a, b, opts), other) })
	})
}

func (h *differHost) mounts(key string) []mount.Mount {
	h.t.Helper()
	mounts, err := h.Mounts(h.t.Context(), key)
	require.NoError(h.t, err)
	return mounts
}

// TestCompareAgreesWithContainerd: the layers of both differs give the same tree, whichever applies them.
func TestCompareAgreesWithContainerd(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) { testCompareAgreesWithContainerd(t, onBtrfs(mode.opts...)) })
	}
}

func testCompareAgreesWithContainerd(t *testing.T, fs filesystem) {
	h := newDifferHostOn(t, fs, Options{})
	ctx := t.Context()
	h.tree()
	lower, upper := h.view("lower", "image"), h.mounts("active")

	native, err := h.differ.Compare(ctx, lower, upper)
	require.NoError(t, err)
	assert.EqualValues(t, 1, h.differ.CompareStats().Native)
	assert.Empty(t, h.differ.CompareStats().Walked)
	walked, err := walking.NewWalkingDiff(h.store).Compare(ctx, lower, upper)
	require.NoError(t, err)

	theirs := apply.NewFileSystemApplier(h.store)
	for key, c := range map[string]struct {
		layer   ocispec.Descriptor
		applier diff.Applier
	}{
		"native by us": {native, h.differ}, "native by containerd": {native, theirs},
		"walked by us": {walked, h.differ}, "walked by containerd": {walked, theirs},
	} {
		mounts := h.prepare(key, "image")
		applied, err := c.applier.Apply(ctx, c.layer, mounts)
		require.NoError(t, err, key)
		plain := h.plain(c.layer)
		assert.Equal(t, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(plain), Size: int64(len(plain)),
		}, applied, key)
		h.assertSameTree("active", key, treecmp.Options{
			WholeSeconds: true,
			// containerd's layers have no extended attributes but capabilities.
			SkipXattr: func(_, name string) bool { return c.layer.Digest == walked.Digest && name == "user.note" },
		})
	}
}

// TestCreateDiff commits a container and exports a snapshot as containerd, nerdctl and dockerd do.
func TestCreateDiff(t *testing.T) { testCreateDiff(t, onBtrfs()) }

func testCreateDiff(t *testing.T, fs filesystem) {
	h := newDifferHostOn(t, fs, Options{})
	ctx := t.Context()
	h.tree()
	active, err := rootfs.CreateDiff(ctx, "active", h.Snapshotter, h.differ)
	require.NoError(t, err)
	h.commit("child", "active")
	committed, err := rootfs.CreateDiff(ctx, "child", h.Snapshotter, h.differ)
	require.NoError(t, err)
	assert.Equal(t, active, committed)
	assert.EqualValues(t, 2, h.differ.CompareStats().Native)

	base, err := rootfs.CreateDiff(ctx, "image", h.Snapshotter, h.differ)
	require.NoError(t, err)
	noParent, err := h.differ.Compare(ctx, nil, h.view("view", "image"))
	require.NoError(t, err)
	assert.Equal(t, base, noParent)
	mounts := h.prepare("copy", "")
	_, err = h.differ.Apply(ctx, base, mounts)
	require.NoError(t, err)
	h.assertSameTree("image", "copy", treecmp.Options{WholeSeconds: true})
	assert.Empty(t, h.differ.CompareStats().Walked, "an empty parent is nothing to walk")

	require.NoError(t, h.Cleanup(ctx))
	assert.Len(t, h.volumes(), 3, "image, child and copy")
}

func TestCompareMediaTypes(t *testing.T) {
	h := newDifferHost(t, Options{})
	ctx := t.Context()
	h.tree()
	lower, upper := h.view("lower", "image"), h.mounts("active")
	plain, err := h.differ.Compare(ctx, lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	require.NoError(t, err)
	assert.Equal(t, ocispec.MediaTypeImageLayer, plain.MediaType)
	assert.Equal(t, plain.Digest, digest.FromBytes(h.blob(plain)))
	assert.Equal(t, h.plain(plain), h.blob(plain))

	for mediaType, magic := range map[string]string{
		"":                              "\x1f\x8b",
		ocispec.MediaTypeImageLayerGzip: "\x1f\x8b",
		ocispec.MediaTypeImageLayerZstd: "\x28\xb5\x2f\xfd",
	} {
		var opts []diff.Opt
		if mediaType != "" {
			opts = append(opts, diff.WithMediaType(mediaType))
		}
		desc, err := h.differ.Compare(ctx, lower, upper, append(opts, diff.WithLabels(map[string]string{"given": mediaType}))...)
		require.NoError(t, err, mediaType)
		if mediaType == "" {
			mediaType = ocispec.MediaTypeImageLayerGzip
		}
		assert.Equal(t, mediaType, desc.MediaType)
		assert.True(t, strings.HasPrefix(string(h.blob(desc)), magic), mediaType)
		assert.Equal(t, h.blob(plain), h.plain(desc), mediaType)
		info, err := h.store.Info(ctx, desc.Digest)
		require.NoError(t, err)
		assert.Equal(t, plain.Digest.String(), info.Labels[labels.LabelUncompressed], mediaType)
		assert.Contains(t, info.Labels, "given", mediaType)
		assert.Equal(t, desc.Size, info.Size, mediaType)
	}

	made, err := h.differ.Compare(ctx, lower, upper, diff.WithMediaType("application/own"),
		diff.WithCompressor(func(w io.Writer, mediaType string) (io.WriteCloser, error) {
			assert.Equal(t, "application/own", mediaType)
			return layertar.Compress(w, layertar.Zstd, 1)
		}))
	require.NoError(t, err)
	assert.Equal(t, "application/own", made.MediaType)
	assert.Equal(t, h.blob(plain), h.plain(made))
	assert.Empty(t, h.uploads())
}

// A blob that is there before without the label of its uncompressed digest gets it.
func TestCompareCompletesLabels(t *testing.T) {
	h := newDifferHost(t, Options{})
	ctx := t.Context()
	h.tree()
	lower, upper := h.view("lower", "image"), h.mounts("active")
	first, err := h.differ.Compare(ctx, lower, upper)
	require.NoError(t, err)
	info, err := h.store.Info(ctx, first.Digest)
	require.NoError(t, err)
	want := info.Labels[labels.LabelUncompressed]
	info.Labels = nil
	_, err = h.store.Update(ctx, info, "labels."+labels.LabelUncompressed)
	require.NoError(t, err)

	second, err := h.differ.Compare(ctx, lower, upper)
	require.NoError(t, err)
	assert.Equal(t, first, second)
	info, err = h.store.Info(ctx, first.Digest)
	require.NoError(t, err)
	assert.Equal(t, want, info.Labels[labels.LabelUncompressed])
}

func TestCompareReusesReference(t *testing.T) {
	h := newDifferHost(t, Options{})
	ctx := t.Context()
	h.tree()
	w, err := h.store.Writer(ctx, content.WithRef("upload"))
	require.NoError(t, err)
	_, err = w.Write([]byte("what an earlier try has left"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	desc, err := h.differ.Compare(ctx, h.view("lower", "image"), h.mounts("active"), diff.WithReference("upload"))
	require.NoError(t, err)
	assert.Equal(t, desc.Digest, digest.FromBytes(h.blob(desc)))
	assert.Empty(t, h.uploads())
}

func TestCompareEpoch(t *testing.T) {
	h := newDifferHost(t, Options{})
	h.tree()
	lower, upper := h.view("lower", "image"), h.mounts("active")
	when := time.Unix(1_000_000_000, 0)
	byOption, err := h.differ.Compare(t.Context(), lower, upper, diff.WithSourceDateEpoch(&when))
	require.NoError(t, err)
	byContext, err := h.differ.Compare(epoch.WithSourceDateEpoch(t.Context(), &when), lower, upper)
	require.NoError(t, err)
	assert.Equal(t, byOption, byContext)
	r := tar.NewReader(bytes.NewReader(h.plain(byOption)))
	for {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		assert.False(t, header.ModTime.After(when), header.Name)
	}
}

// errWriter is a compressor that fails.
type errWriter struct{ err error }

func (e errWriter) Write([]byte) (int, error) { return 0, e.err }
func (e errWriter) Close() error              { return nil }

func TestCompareErrors(t *testing.T) {
	h := newDifferHost(t, Options{})
	h.tree()
	lower, upper := h.view("lower", "image"), h.mounts("active")
	volume := h.volume("active")
	bind := func(source string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: source, Options: []string{"rbind", "rw"}}}
	}
	other := func(change func(m *mount.Mount)) []mount.Mount {
		m := upper[0]
		m.Options = slices.Clone(m.Options)
		change(&m)
		return []mount.Mount{m}
	}
	subvolume := func(change func(path string) string) []mount.Mount {
		return other(func(m *mount.Mount) {
			for i, option := range m.Options {
				if path, ok := strings.CutPrefix(option, "subvol="); ok {
					m.Options[i] = "subvol=" + change(path)
				}
			}
		})
	}
	failing := func(io.Writer, string) (io.WriteCloser, error) { return errWriter{unix.EIO}, nil }
	before := h.state()
	for name, c := range map[string]struct {
		lower, upper []mount.Mount
		opts         []diff.Opt
		want         error
	}{
		"elsewhere":               {lower, bind(t.TempDir()), nil, errdefs.ErrNotImplemented},
		"lower elsewhere":         {bind(t.TempDir()), upper, nil, errdefs.ErrNotImplemented},
		"volume's name elsewhere": {lower, bind("/tmp/" + volume), nil, errdefs.ErrNotImplemented},
		"by its path":             {lower, bind(h.path(volume)), nil, errdefs.ErrNotImplemented},
		"other home":              {lower, subvolume(func(string) string { return "/other/" + volume }), nil, errdefs.ErrNotImplemented},
		"unknown volume": {lower, subvolume(func(path string) string {
			return filepath.Join(filepath.Dir(path), newVolumeName(snapshotPrefix, "key"))
		}), nil, errdefs.ErrNotImplemented},
		"below a volume":        {lower, subvolume(func(path string) string { return path + "/etc" }), nil, errdefs.ErrNotImplemented},
		"above a volume":        {lower, subvolume(filepath.Dir), nil, errdefs.ErrNotImplemented},
		"two subvolumes":        {lower, other(func(m *mount.Mount) { m.Options = append(m.Options, "subvol=/") }), nil, errdefs.ErrNotImplemented},
		"subvolume and its id":  {lower, other(func(m *mount.Mount) { m.Options = append(m.Options, "subvolid=5") }), nil, errdefs.ErrNotImplemented},
		"no subvolume":          {lower, other(func(m *mount.Mount) { m.Options = nil }), nil, errdefs.ErrNotImplemented},
		"other device":          {lower, other(func(m *mount.Mount) { m.Source = "/dev/null" }), nil, errdefs.ErrNotImplemented},
		"overlay":               {lower, other(func(m *mount.Mount) { m.Type = "overlay" }), nil, errdefs.ErrNotImplemented},
		"part of a mount":       {lower, other(func(m *mount.Mount) { m.Target = "/usr" }), nil, errdefs.ErrNotImplemented},
		"two mounts":            {lower, append(upper, upper...), nil, errdefs.ErrNotImplemented},
		"no upper":              {lower, nil, nil, errdefs.ErrNotImplemented},
		"empty source":          {lower, bind(""), nil, errdefs.ErrNotImplemented},
		"unknown media type":    {lower, upper, []diff.Opt{diff.WithMediaType("text/plain")}, errdefs.ErrNotImplemented},
		"compressor of nothing": {lower, upper, []diff.Opt{diff.WithCompressor(failing)}, errdefs.ErrInvalidArgument},
		"compressor fails":      {lower, upper, []diff.Opt{diff.WithCompressor(failing), diff.WithMediaType("a/b")}, unix.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.differ.Compare(t.Context(), c.lower, c.upper, c.opts...)
			assert.ErrorIs(t, err, c.want)
			assert.Empty(t, h.uploads(), "the upload is given up")
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := h.differ.Compare(ctx, lower, upper)
		assert.ErrorIs(t, err, context.Canceled)
		assert.Empty(t, h.uploads())
	})
	assert.Equal(t, before, h.state())
}

// Mounts are recognised whatever others have made of how they may be accessed.
func TestResolveChangedOptions(t *testing.T) { testResolveChangedOptions(t, onBtrfs()) }

func testResolveChangedOptions(t *testing.T, fs filesystem) {
	h := newHostOn(t, fs, Options{})
	h.image("image")
	h.prepare("active", "image")
	h.view("view", "image")
	for _, key := range []string{"active", "view"} {
		mounts, err := h.Mounts(t.Context(), key)
		require.NoError(t, err)
		m := mounts[0]
		kept := slices.DeleteFunc(slices.Clone(m.Options), func(option string) bool { return option == "rw" || option == "ro" })
		for _, c := range []struct {
			options  []string
			readOnly bool
		}{
			{m.Options, key == "view"},
			{kept, false},
			{append([]string{"ro"}, kept...), true},
			{append([]string{"rw", "uidmap=0:1:1", "gidmap=0:1:1", "noexec"}, kept...), false},
		} {
			m.Options = c.options
			found, err := h.resolve(t.Context(), []mount.Mount{m})
			require.NoError(t, err)
			assert.Equal(t, mounted{volume: h.volume(key), readOnly: c.readOnly}, found, "%s %q", key, c.options)
		}
	}
}

// layerOf makes a layer with one file of that size.
func layerOf(t *testing.T, size int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "applied", Mode: 0o644, Size: int64(size)}))
	_, err := w.Write(bytes.Repeat([]byte("layer"), size/5+1)[:size])
	require.NoError(t, err)
	require.NoError(t, w.Close())
	buf.Write(make([]byte, 4096)) // tar pads, and all of it counts
	return buf.Bytes()
}

func compressed(t *testing.T, data []byte, format layertar.Format) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := layertar.Compress(&buf, format, 0)
	require.NoError(t, err)
	_, err = w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func TestApplyMediaTypes(t *testing.T) {
	h := newDifferHost(t, Options{})
	layer := layerOf(t, 3*mib)
	for _, c := range []struct {
		mediaType string
		format    layertar.Format
	}{
		{ocispec.MediaTypeImageLayer, layertar.Plain},
		{ocispec.MediaTypeImageLayerGzip, layertar.Gzip},
		{ocispec.MediaTypeImageLayerZstd, layertar.Zstd},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar", layertar.Plain},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", layertar.Gzip},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", layertar.Zstd},
		{images.MediaTypeDockerSchema2Layer, layertar.Plain},
		{images.MediaTypeDockerSchema2Layer, layertar.Gzip},
		{images.MediaTypeDockerSchema2LayerForeign, layertar.Zstd},
		{images.MediaTypeDockerSchema2LayerGzip, layertar.Gzip},
		{images.MediaTypeDockerSchema2LayerForeignGzip, layertar.Gzip},
		{images.MediaTypeDockerSchema2LayerZstd, layertar.Zstd},
		{ocispec.MediaTypeImageLayerGzip, layertar.Zstd}, // as it is, not as it is said to be
	} {
		key := c.mediaType + " " + c.format.String()
		mounts := h.prepare(key, "")
		desc := h.put(c.mediaType, compressed(t, layer, c.format))
		var reports []int64
		applied, err := h.differ.Apply(t.Context(), desc, mounts, diff.WithProgress(func(d ocispec.Descriptor, n int64) {
			assert.Equal(t, desc, d)
			reports = append(reports, n)
		}))
		require.NoError(t, err, key)
		assert.Equal(t, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer)),
		}, applied, key)
		info, err := os.Stat(filepath.Join(h.dir(key), "applied"))
		require.NoError(t, err, key)
		assert.EqualValues(t, 3*mib, info.Size(), key)
		assert.IsNonDecreasing(t, reports, key)
		assert.EqualValues(t, 0, reports[0], key)
		assert.Equal(t, desc.Size, reports[len(reports)-1], key)
	}
}

func TestApplyErrors(t *testing.T) {
	h := newDifferHost(t, Options{})
	h.image("image")
	active := h.prepare("active", "image")
	view := h.view("view", "image")
	empty := h.view("empty", "")
	layer := layerOf(t, 1000)
	good := h.put(ocispec.MediaTypeImageLayer, layer)
	// The store's files can be damaged behind its back.
	damaged := h.put(ocispec.MediaTypeImageLayerGzip, compressed(t, layerOf(t, 1001), layertar.Gzip))
	desc := func(change func(d *ocispec.Descriptor)) ocispec.Descriptor { d := good; change(&d); return d }
	damagedStore := damagingStore{h.store, damaged.Digest}
	h.differ = NewDiffer(h.Snapshotter, damagedStore)

	before := h.state()
	for name, c := range map[string]struct {
		desc   ocispec.Descriptor
		mounts []mount.Mount
		want   error
	}{
		"unknown media type": {desc(func(d *ocispec.Descriptor) { d.MediaType = "text/plain" }), active, errdefs.ErrNotImplemented},
		"no media type":      {desc(func(d *ocispec.Descriptor) { d.MediaType = "" }), active, errdefs.ErrNotImplemented},
		"encrypted":          {desc(func(d *ocispec.Descriptor) { d.MediaType += "+encrypted" }), active, errdefs.ErrNotImplemented},
		"not in the store":   {desc(func(d *ocispec.Descriptor) { d.Digest = digest.FromString("x") }), active, errdefs.ErrNotFound},
		"wrong size":         {desc(func(d *ocispec.Descriptor) { d.Size++ }), active, errdefs.ErrFailedPrecondition},
		"wrong digest":       {damaged, active, errdefs.ErrFailedPrecondition},
		"view":               {good, view, errdefs.ErrFailedPrecondition},
		"empty view":         {good, empty, errdefs.ErrFailedPrecondition},
		"no mounts":          {good, nil, errdefs.ErrFailedPrecondition},
		"committed":          {good, writable(view), errdefs.ErrFailedPrecondition},
		"elsewhere":          {good, []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}}, errdefs.ErrNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.differ.Apply(t.Context(), c.desc, c.mounts)
			assert.ErrorIs(t, err, c.want)
			assert.Equal(t, before, h.state())
			assert.NoFileExists(t, filepath.Join(h.dir("active"), "applied"))
		})
	}
	_, err := h.differ.Apply(t.Context(), good, active)
	assert.NoError(t, err)
}

// writable makes mounts those that could be written to, if the volume were not sealed.
func writable(mounts []mount.Mount) []mount.Mount {
	m := mounts[0]
	m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(option string) bool { return option == "ro" })
	return []mount.Mount{m}
}

// damagingStore is a store in which one blob has rotted.
type damagingStore struct {
	content.Store
	digest digest.Digest
}

func (s damagingStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	if err != nil || desc.Digest != s.digest {
		return ra, err
	}
	blob, err := io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
	blob[len(blob)/2] ^= 1
	return rotten{bytes.NewReader(blob), ra}, err
}

type rotten struct {
	*bytes.Reader
	io.Closer
}

func (r rotten) Size() int64 { return r.Reader.Size() }

// countingStore counts the calls that are one request each where the store is another process.
type countingStore struct {
	content.Store
	requests *atomic.Int64
}

func (s countingStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	return countingReader{ra, s.requests}, err
}

func (s countingStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	return countingWriter{w, s.requests}, err
}

type countingReader struct {
	content.ReaderAt
	requests *atomic.Int64
}

func (r countingReader) ReadAt(p []byte, off int64) (int, error) {
	r.requests.Add(1)
	return r.ReaderAt.ReadAt(p, off)
}

type countingWriter struct {
	content.Writer
	requests *atomic.Int64
}

func (w countingWriter) Write(p []byte) (int, error) {
	w.requests.Add(1)
	return w.Writer.Write(p)
}

// TestRequests: a blob is read and written in large pieces.
func TestRequests(t *testing.T) {
	h := newDifferHost(t, Options{})
	size := 8 * mib
	noise := make([]byte, size) // so that the compressed data is as large
	_, err := rand.NewChaCha8([32]byte{}).Read(noise)
	require.NoError(t, err)
	var requests atomic.Int64
	differ := NewDiffer(h.Snapshotter, countingStore{h.store, &requests})
	h.prepare("noise", "")
	h.write("noise", "file", noise)
	for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		requests.Store(0)
		desc, err := differ.Compare(t.Context(), nil, h.mounts("noise"), diff.WithMediaType(mediaType))
		require.NoError(t, err)
		assert.LessOrEqual(t, requests.Load(), desc.Size/pieceSize+2, "writing %s", mediaType)

		requests.Store(0)
		_, err = differ.Apply(t.Context(), desc, h.prepare(mediaType, ""))
		require.NoError(t, err)
		assert.LessOrEqual(t, requests.Load(), desc.Size/pieceSize+2, "applying %s", mediaType)
		assert.True(t, string(noise) == h.content(mediaType, "file"), "the content of %s", mediaType)
	}
}

func TestApplyMalformed(t *testing.T) {
	h := newDifferHost(t, Options{})
	for name, blob := range map[string][]byte{
		"no tar":   bytes.Repeat([]byte("no tar "), 1000),
		"cut off":  layerOf(t, 10_000)[:5000],
		"way out":  wayOut(t),
		"cut gzip": compressed(t, layerOf(t, 10_000), layertar.Gzip)[:100],
	} {
		mediaType := ocispec.MediaTypeImageLayer
		if strings.HasSuffix(name, "gzip") {
			mediaType = ocispec.MediaTypeImageLayerGzip
		}
		_, err := h.differ.Apply(t.Context(), h.put(mediaType, blob), h.prepare(name, ""))
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
		require.NoError(t, h.Remove(t.Context(), name))
	}
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Empty(t, h.volumes())
}

func wayOut(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "../../out", Mode: 0o644}))
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func TestApplyBeyondLimit(t *testing.T) {
	h := newDifferHost(t, Options{
		DefaultLimit: quota.Limit{Bytes: 8 * mib}, BuildLimit: quota.Limit{Bytes: 16 * mib},
	}, testfs.WithSimpleQuota())
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "large", Mode: 0o644, Size: 32 * mib}))
	block := make([]byte, mib)
	for i := range block {
		block[i] = byte(i*i>>7 + i)
	}
	for range 32 {
		_, err := w.Write(block)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	desc := h.put(ocispec.MediaTypeImageLayer, layer.Bytes())
	const unpack = "default/1/extract-123-Abc_ sha256:abc"
	for key, c := range map[string]struct {
		label, says string
	}{
		"active":                    {"", "its limit of 8MiB (default_limit, for containers)"},
		unpack:                      {"", "its limit of 16MiB (build_limit, for builds and layers that are unpacked)"},
		unpack + "d":                {"4194304", "its limit of 16MiB (build_limit, for builds and layers that are unpacked)"},
		"zo2wm3h5dsw5v1yoo4iiplkfu": {"4194304", "its limit of 4MiB: "},
	} {
		var opts []snapshots.Opt
		if c.label != "" {
			opts = append(opts, label(snapshots.LabelSnapshotMaxSize, c.label))
		}
		_, err := h.differ.Apply(t.Context(), desc, h.prepare(key, "", opts...))
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted, key)
		require.ErrorIs(t, err, unix.EDQUOT, key)
		require.ErrorContains(t, err, c.says, key)
	}
}

// A diff of a snapshot that is being written to is one moment of it.
func TestCompareWhileWriting(t *testing.T) {
	h := newDifferHost(t, Options{})
	h.image("image")
	upper := h.prepare("active", "image")
	lower := h.view("lower", "image")
	dir := h.dir("active")
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			name := filepath.Join(dir, string(rune('a'+i%26)))
			_ = os.WriteFile(name, []byte(name), 0o644)
			_ = os.Remove(name)
		}
	})
	for range 3 {
		desc, err := h.differ.Compare(t.Context(), lower, upper)
		if assert.NoError(t, err) {
			assert.LessOrEqual(t, len(h.names(desc)), 1)
		}
	}
	close(done)
	wg.Wait()
	assert.EqualValues(t, 3, h.differ.CompareStats().Native)
}
