package tocontainerd

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/require"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/snapshotter"
)

// host is a containerd in this process: its metadata with their rules and their garbage, its content store, and Cowshed
// on a btrfs of its own. On the same filesystem is a source.
type host struct {
	t       *testing.T
	mnt     string
	db      *metadata.DB
	backend *btrfs.Backend
	cow     *snapshotter.Snapshotter
	source  *source
}

func newHost(t *testing.T, opts ...testfs.BtrfsOption) *host {
	t.Helper()
	testfs.CheckLeaks(t)
	h := &host{t: t, mnt: testfs.Btrfs(t, opts...)}
	backend, err := btrfs.Open(t.Context(), filepath.Join(h.mnt, "volumes"), btrfs.Options{})
	require.NoError(t, err)
	h.backend = backend
	h.cow, err = snapshotter.New(context.WithoutCancel(t.Context()), filepath.Join(h.mnt, "snapshotter"), backend, snapshotter.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.cow.Close()) })
	blobs, err := local.NewStore(filepath.Join(h.mnt, "content"))
	require.NoError(t, err)
	file, err := bolt.Open(filepath.Join(h.mnt, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, file.Close()) })
	h.db = metadata.NewDB(file, blobs, map[string]snapshots.Snapshotter{DefaultSnapshotter: h.cow})
	require.NoError(t, h.db.Init(t.Context()))
	return h
}

// services are those of the host.
func (h *host) services() *services {
	return &services{
		content:   h.db.ContentStore(),
		snapshots: h.db.Snapshotter(DefaultSnapshotter),
		images:    metadata.NewImageStore(h.db),
		leases:    collecting{metadata.NewLeaseManager(h.db), h.db},
		offers:    h.cow,
		root:      h.mnt,
	}
}

// collecting are leases as those of containerd's service: a synchronous deletion collects garbage.
type collecting struct {
	leases.Manager
	db *metadata.DB
}

func (c collecting) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	if err := c.Manager.Delete(ctx, lease, opts...); err != nil {
		return err
	}
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if !o.Synchronous {
		return nil
	}
	_, err := c.db.GarbageCollect(ctx)
	return err
}

func (h *host) options(namespace string) Options {
	return Options{
		Namespace: namespace, DockerRoot: h.dockerRoot(), StateDir: filepath.Join(h.mnt, "state", namespace),
	}
}

func (h *host) dockerRoot() string { return filepath.Join(h.mnt, "docker") }

func (h *host) target(o Options) *Target {
	h.t.Helper()
	require.NoError(h.t, o.complete())
	return newTarget(o, h.services())
}

func (h *host) in(namespace string) context.Context {
	return namespaces.WithNamespace(h.t.Context(), namespace)
}

// collect collects garbage, of all namespaces.
func (h *host) collect() {
	h.t.Helper()
	_, err := h.db.GarbageCollect(h.t.Context())
	require.NoError(h.t, err)
}

// state lists everything in a namespace after garbage was collected, without times.
func (h *host) state(namespace string) []string {
	h.t.Helper()
	h.collect()
	ctx, s := h.in(namespace), h.services()
	var list []string
	note := func(kind, name string, labels map[string]string, more ...any) {
		data, err := json.Marshal(labels)
		require.NoError(h.t, err)
		list = append(list, fmt.Sprintln(append([]any{kind, name, string(data)}, more...)...))
	}
	require.NoError(h.t, s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		note("snapshot", info.Name, info.Labels, info.Kind, info.Parent)
		return nil
	}))
	require.NoError(h.t, s.content.Walk(ctx, func(info content.Info) error {
		note("blob", info.Digest.String(), info.Labels)
		return nil
	}))
	uploads, err := s.content.ListStatuses(ctx)
	require.NoError(h.t, err)
	for _, upload := range uploads {
		note("upload", upload.Ref, nil)
	}
	all, err := s.images.List(ctx)
	require.NoError(h.t, err)
	for _, image := range all {
		note("image", image.Name, image.Labels, image.Target.Digest)
	}
	held, err := s.leases.List(ctx)
	require.NoError(h.t, err)
	for _, lease := range held {
		resources, err := s.leases.ListResources(ctx, lease)
		require.NoError(h.t, err)
		slices.SortFunc(resources, func(a, b leases.Resource) int { return strings.Compare(a.ID, b.ID) })
		note("lease", lease.ID, lease.Labels, resources)
	}
	slices.Sort(list)
	return list
}

// source is an old root with three layers of images, two images, and a container. It has them as directories, or as
// subvolumes.
type source struct {
	t       *testing.T
	dir     string
	inv     migrate.Inventory
	content map[string]migrate.Content // without Dir
	parts   map[string][]byte
}

var _ migrate.Source = (*source)(nil)

const (
	theContainer = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
	theLimit     = 64 << 20
)

// form is how a source keeps its layers.
type form string

const (
	subvolumes  form = "subvolumes"
	directories form = "directories"
	overlays    form = "overlays"
)

var forms = []form{subvolumes, directories, overlays}

// newSource makes the source of a host.
func (h *host) newSource(f form) *source {
	h.t.Helper()
	s := &source{t: h.t, dir: filepath.Join(h.mnt, "old"), content: make(map[string]migrate.Content), parts: make(map[string][]byte), inv: migrate.Inventory{Program: docker}}
	require.NoError(h.t, os.Mkdir(s.dir, 0o700))
	base := s.imageLayer(f, "base-id", "", []entry{
		{name: "etc/", mode: 0o755}, {name: "etc/motd", data: "base"}, {name: "etc/gone", data: "gone"},
		{name: "bin/", mode: 0o755}, {name: "bin/tool", data: strings.Repeat("tool", 50_000), mode: 0o4755},
		{name: "bin/link", link: "bin/tool"}, {name: "lib", symlink: "/etc"},
	})
	top := s.imageLayer(f, "top-id", "base-id", []entry{
		{name: "etc/", mode: 0o750}, {name: "etc/motd", data: "top"}, {name: "etc/gone", gone: true}, {name: "new", data: "new"},
	})
	other := s.imageLayer(f, "other-id", "base-id", []entry{{name: "other", data: "other"}})
	first := s.image([]string{"docker.io/library/app:1", "docker.io/library/app:latest"}, base, top)
	untagged := s.image(nil, base, other)
	s.inv.Images[0].Parent = untagged

	s.layer(f, migrate.Layer{ID: "mount-init", Parent: "top-id", Kind: migrate.InitLayer}, []entry{{name: "etc/hosts", data: ""}})
	s.layer(f, migrate.Layer{ID: "mount", Parent: "mount-init", Kind: migrate.ContainerLayer, Limit: theLimit}, []entry{
		{name: "written", data: "by the container"}, {name: "new", gone: true},
	})
	s.inv.Containers = []migrate.Container{{
		ID: theContainer, Name: "web", Image: first, Layer: "mount", Dir: "containers/" + theContainer,
	}}
	slices.SortFunc(s.inv.Images, func(a, b migrate.Image) int { return strings.Compare(string(a.ID), string(b.ID)) })
	h.source = s

	dir := filepath.Join(h.dockerRoot(), "containers", theContainer)
	require.NoError(h.t, os.MkdirAll(dir, 0o700))
	config := fmt.Sprintf(`{"ID":%q,"Driver":"overlay2","Image":%q,"Name":"/web","Unknown":{"Big":12345678901234567890}}`, theContainer, first)
	require.NoError(h.t, os.WriteFile(filepath.Join(dir, configName), []byte(config), 0o640))
	require.NoError(h.t, os.WriteFile(filepath.Join(dir, hostConfigName), []byte(`{"old":true}`), 0o644))
	return s
}

// entry is a file of a layer. A name with a slash at its end is a directory.
type entry struct {
	name, data, link, symlink string
	mode                      int64
	gone                      bool
}

// layerTar is the tar of a layer, in a form that layertar.Write would not write: it has a comment.
func layerTar(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, ModTime: time.Unix(1_500_000_000, 0), Typeflag: tar.TypeReg, PAXRecords: map[string]string{"comment": "odd"}}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.link
		case e.symlink != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.symlink
		case e.gone:
			h.Name = filepath.Join(filepath.Dir(e.name), ".wh."+filepath.Base(e.name))
		default:
			h.Size = int64(len(e.data))
		}
		require.NoError(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := io.WriteString(w, e.data)
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// imageLayer makes a layer of images with its parts, and returns its diff ID.
func (s *source) imageLayer(f form, id, parent string, entries []entry) digest.Digest {
	s.t.Helper()
	layer := migrate.Layer{ID: id, Parent: parent, Kind: migrate.ImageLayer, Size: 1000}
	data := layerTar(s.t, entries)
	layer.DiffID = digest.FromBytes(data)
	layer.ChainID = layer.DiffID
	for _, below := range s.inv.Layers {
		if below.ID == parent {
			layer.ChainID = identity.ChainID([]digest.Digest{below.ChainID, layer.DiffID})
		}
	}
	var parts bytes.Buffer
	in, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(data), storage.NewJSONPacker(&parts), storage.NewDiscardFilePutter())
	require.NoError(s.t, err)
	_, err = io.Copy(io.Discard, in)
	require.NoError(s.t, err)
	require.NoError(s.t, errors.Join(in.Close(), <-done))
	s.parts[id] = parts.Bytes()
	s.layer(f, layer, entries)
	return layer.DiffID
}

// layer makes a layer.
func (s *source) layer(f form, layer migrate.Layer, entries []entry) {
	s.t.Helper()
	s.inv.Layers = append(s.inv.Layers, layer)
	dir := filepath.Join(s.dir, layer.ID)
	c := migrate.Content{Form: migrate.Whole}
	parent := filepath.Join(s.dir, layer.Parent)
	switch {
	case f == overlays:
		c.Form = migrate.Overlay
		s.overlay(dir, entries)
		s.content[layer.ID] = c
		return
	case f == directories && layer.Parent != "":
		s.run("cp", "-a", parent, dir)
	case f == directories:
		require.NoError(s.t, os.Mkdir(dir, 0o755))
	case layer.Parent != "":
		s.run("btrfs", "subvolume", "snapshot", parent, dir)
		c.Volume = dir
	default:
		s.run("btrfs", "subvolume", "create", dir)
		c.Volume = dir
	}
	_, err := layertar.Apply(s.t.Context(), dir, bytes.NewReader(layerTar(s.t, entries)), layertar.ApplyOptions{})
	require.NoError(s.t, err)
	s.content[layer.ID] = c
}

// overlay makes a directory as overlayfs has it.
func (s *source) overlay(dir string, entries []entry) {
	s.t.Helper()
	require.NoError(s.t, os.Mkdir(dir, 0o755))
	var whole []entry
	for _, e := range entries {
		if !e.gone {
			whole = append(whole, e)
		}
	}
	_, err := layertar.Apply(s.t.Context(), dir, bytes.NewReader(layerTar(s.t, whole)), layertar.ApplyOptions{})
	require.NoError(s.t, err)
	for _, e := range entries {
		if e.gone {
			require.NoError(s.t, unix.Mknod(filepath.Join(dir, e.name), unix.S_IFCHR, 0))
		}
	}
}

func (s *source) run(name string, args ...string) {
	s.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(s.t, err, "%s", out)
}

// image makes an image of layers with these diff IDs.
func (s *source) image(names []string, diffIDs ...digest.Digest) digest.Digest {
	s.t.Helper()
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}, "names": names,
	})
	require.NoError(s.t, err)
	image := migrate.Image{ID: digest.FromBytes(config), Config: config, Names: names}
	for _, diffID := range diffIDs {
		for _, layer := range s.inv.Layers {
			if layer.DiffID == diffID {
				image.Layers = append(image.Layers, layer.ID)
			}
		}
	}
	s.inv.Images = append(s.inv.Images, image)
	return image.ID
}

func (s *source) Inventory(context.Context) (*migrate.Inventory, error) {
	inv := s.inv
	return &inv, nil
}

func (s *source) Open(_ context.Context, layer string) (*migrate.Content, error) {
	c, ok := s.content[layer]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	var err error
	c.Dir, err = os.Open(filepath.Join(s.dir, layer))
	return &c, err
}

func (s *source) Parts(_ context.Context, layer string) (io.ReadCloser, error) {
	parts, ok := s.parts[layer]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(parts)), nil
}

func (*source) InUse(context.Context) error  { return nil }
func (*source) Remove(context.Context) error { return nil }
func (*source) Close() error                 { return nil }

// layerOf is the layer of the inventory with that ID.
func (s *source) layerOf(id string) *migrate.Layer {
	s.t.Helper()
	i := slices.IndexFunc(s.inv.Layers, func(l migrate.Layer) bool { return l.ID == id })
	require.GreaterOrEqual(s.t, i, 0)
	return &s.inv.Layers[i]
}

// writtenBy is the diff ID of a layer in the form that Cowshed writes.
func (h *host) writtenBy(target *Target, id, parent string) digest.Digest {
	h.t.Helper()
	open := func(name string) *os.File {
		f, err := os.Open(filepath.Join(h.source.dir, name))
		require.NoError(h.t, err)
		h.t.Cleanup(func() { require.NoError(h.t, f.Close()) })
		return f
	}
	var base *os.File
	if parent != "" {
		base = open(parent)
	}
	var b bytes.Buffer
	require.NoError(h.t, writeDiff(h.t.Context(), &b, open(id), base, target.opts.Logger))
	return digest.FromBytes(b.Bytes())
}
