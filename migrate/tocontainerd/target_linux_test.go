package tocontainerd

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/containersstorage"
	"github.com/cowshed/cowshed/migrate/oldgraph"
)

// migration is the whole way, as the command goes it.
func (h *host) migration(t *Target) *migrate.Migration {
	return migrate.New(h.source, t, migrate.Options{Source: h.source.dir, Target: "containerd", State: filepath.Join(h.mnt, "journal", t.opts.Namespace)})
}

func (h *host) run(t *Target) {
	h.t.Helper()
	_, err := h.migration(t).Run(h.t.Context(), nil)
	require.NoError(h.t, err)
}

// requireTrees compares the snapshots of a namespace with trees made of the same layers.
func (h *host) requireTrees(namespace string, want map[string]string) {
	h.t.Helper()
	s := h.services()
	for key, dir := range want {
		info, err := s.snapshots.Stat(h.in(namespace), key)
		require.NoError(h.t, err)
		volume := h.volumeOf(namespace, info)
		treecmp.Equal(h.t, filepath.Join(h.source.dir, dir), filepath.Join(h.mnt, "volumes", "subvolumes", volume), treecmp.Options{})
	}
}

// volumeOf is the volume of a snapshot.
func (h *host) volumeOf(namespace string, info snapshots.Info) string {
	h.t.Helper()
	var mounts []string
	if info.Kind == snapshots.KindActive {
		m, err := h.services().snapshots.Mounts(h.in(namespace), info.Name)
		require.NoError(h.t, err)
		mounts = m[0].Options
	} else {
		m, err := h.services().snapshots.View(h.in(namespace), "look", info.Name)
		require.NoError(h.t, err)
		mounts = m[0].Options
		require.NoError(h.t, h.services().snapshots.Remove(h.in(namespace), "look"))
	}
	for _, option := range mounts {
		if subvolume, ok := strings.CutPrefix(option, "subvol="); ok {
			return filepath.Base(subvolume)
		}
	}
	h.t.Fatalf("no subvolume in %q", mounts)
	return ""
}

// TestMigration goes the whole way to Docker and back, from each form of a source.
func TestMigration(t *testing.T) {
	var manifests []digest.Digest
	for _, form := range forms {
		t.Run(string(form), func(t *testing.T) {
			h := newHost(t)
			s := h.newSource(form)
			var log bytes.Buffer
			o := h.options(Moby)
			o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			target := h.target(o)
			empty := h.state(Moby)
			dir := filepath.Join(h.dockerRoot(), "containers", theContainer)
			before := readAll(t, dir)

			h.run(target)
			after := h.state(Moby)
			equal, err := h.migration(h.target(o)).Verify(t.Context(), nil) // by another process
			require.NoError(t, err)
			assert.Equal(t, 8, equal)
			assert.Equal(t, after, h.state(Moby), "verification leaves nothing")

			assert.NotContains(t, log.String(), "not adopted")
			if form != overlays {
				h.requireTrees(Moby, map[string]string{
					s.layerOf("base-id").ChainID.String(): "base-id", s.layerOf("top-id").ChainID.String(): "top-id",
					theContainer + initSuffix: "mount-init", theContainer: "mount",
				})
			}
			manifests = append(manifests, h.requireImages(target)...)
			h.requireDocker(target, after)

			h.run(target) // changes nothing
			assert.Equal(t, after, h.state(Moby))

			another := h.target(o)
			_, err = h.migration(another).Undo(t.Context(), nil)
			require.NoError(t, err)
			require.NoError(t, another.Close())
			assert.Equal(t, empty, h.state(Moby))
			assert.Equal(t, before, readAll(t, dir))
			assert.NoDirExists(t, filepath.Join(h.mnt, "state", Moby, containersDir, theContainer+stagedSuffix))
		})
	}
	require.Len(t, manifests, 2*len(forms))
	for i := range manifests {
		assert.Equal(t, manifests[i%2], manifests[i], "an image has the same digest wherever it comes from")
	}
}

// readAll reads the files of a directory, with their modes.
func readAll(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		files[e.Name()] = info.Mode().String() + " " + string(data)
	}
	return files
}

// requireImages checks the images of a source, and returns the digests of their manifests.
func (h *host) requireImages(t *Target) (manifests []digest.Digest) {
	h.t.Helper()
	ctx := h.in(t.opts.Namespace)
	for _, image := range h.source.inv.Images {
		desc, err := t.manifestOf(ctx, image.ID)
		require.NoError(h.t, err)
		manifests = append(manifests, desc.Digest)
		names := image.Names
		if len(names) == 0 && t.moby() {
			names = []string{"moby-dangling@" + desc.Digest.String()}
		} else if len(names) == 0 {
			names = []string{desc.Digest.String()}
		}
		for _, name := range names {
			record, err := t.images.Get(ctx, name)
			require.NoError(h.t, err)
			assert.Equal(h.t, desc, record.Target)
		}
		manifest, err := images.Manifest(ctx, t.content, desc, nil)
		require.NoError(h.t, err)
		config, err := content.ReadBlob(ctx, t.content, manifest.Config)
		require.NoError(h.t, err)
		assert.Equal(h.t, image.Config, config)
		for i, layer := range manifest.Layers {
			assert.Equal(h.t, ocispec.MediaTypeImageLayerZstd, layer.MediaType)
			blob, err := t.content.ReaderAt(ctx, layer)
			require.NoError(h.t, err)
			tar, format, err := layertar.Decompress(content.NewReader(blob))
			require.NoError(h.t, err)
			assert.Equal(h.t, layertar.Zstd, format)
			whole, err := io.ReadAll(tar)
			require.NoError(h.t, err)
			assert.Equal(h.t, h.source.layerOf(image.Layers[i]).DiffID, digest.FromBytes(whole))
			require.NoError(h.t, tar.Close())
			require.NoError(h.t, blob.Close())
		}
	}
	return manifests
}

// requireDocker checks that Docker finds the container.
func (h *host) requireDocker(t *Target, state []string) {
	h.t.Helper()
	ctx := h.in(Moby)
	held, err := t.leases.ListResources(ctx, leases.Lease{ID: theContainer})
	require.NoError(h.t, err)
	var keys []string
	for _, resource := range held {
		keys = append(keys, resource.Type+" "+resource.ID)
	}
	for _, key := range []string{theContainer, theContainer + initSuffix} {
		assert.Contains(h.t, keys, "snapshots/cowshed "+key)
	}
	info, err := t.snapshots.Stat(ctx, theContainer)
	require.NoError(h.t, err)
	assert.Equal(h.t, map[string]string{LayerLabel: "mount", snapshots.LabelSnapshotMaxSize: "67108864"}, info.Labels)
	assert.False(h.t, slices.ContainsFunc(state, func(line string) bool { return strings.Contains(line, t.lease.ID) }), "the lease has ended: %s", state)

	for _, image := range h.source.inv.Images {
		if image.Parent == "" {
			continue
		}
		parent, err := t.manifestOf(ctx, image.Parent)
		require.NoError(h.t, err)
		for _, name := range image.Names {
			record, err := t.images.Get(ctx, name)
			require.NoError(h.t, err)
			assert.Equal(h.t, parent.Digest.String(), record.Labels["org.mobyproject.image.parent"])
		}
	}

	var config struct {
		Driver, ID, Name string
		Image            digest.Digest
		ImageManifest    ocispec.Descriptor
		Unknown          struct{ Big json.Number }
	}
	data, err := os.ReadFile(filepath.Join(h.dockerRoot(), "containers", theContainer, configName))
	require.NoError(h.t, err)
	require.NoError(h.t, json.Unmarshal(data, &config))
	manifest, err := t.manifestOf(ctx, h.source.inv.Containers[0].Image)
	require.NoError(h.t, err)
	assert.Equal(h.t, "cowshed", config.Driver)
	assert.Equal(h.t, manifest.Digest, config.Image)
	assert.Equal(h.t, manifest, config.ImageManifest)
	assert.Equal(h.t, json.Number("12345678901234567890"), config.Unknown.Big)
	assert.Equal(h.t, "/web", config.Name)
}

// TestOtherNamespace: a container is a snapshot there, which stays.
func TestOtherNamespace(t *testing.T) {
	h := newHost(t)
	h.newSource(directories)
	o := h.options("k8s.io")
	o.DockerRoot = ""
	target := h.target(o)
	empty := h.state("k8s.io")
	h.run(target)
	h.collect()
	info, err := target.snapshots.Stat(h.in("k8s.io"), theContainer)
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindActive, info.Kind)
	assert.Equal(t, "web", info.Labels[NameLabel])
	assert.Equal(t, theContainer+initSuffix, info.Parent)
	manifest, err := target.manifestOf(h.in("k8s.io"), h.source.inv.Images[0].ID)
	require.NoError(t, err)
	m, err := images.Manifest(h.in("k8s.io"), target.content, manifest, nil)
	require.NoError(t, err)
	assert.Equal(t, ocispec.MediaTypeImageLayerZstd, m.Layers[0].MediaType)

	_, err = h.migration(target).Undo(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, empty, h.state("k8s.io"))
}

// TestUndoKeepsWhatOthersUse: an image that was made on top of a migrated one keeps its layers.
func TestUndoKeepsWhatOthersUse(t *testing.T) {
	h := newHost(t)
	h.newSource(directories)
	target := h.target(h.options(Moby))
	h.run(target)
	ctx := h.in(Moby)
	manifest, err := target.manifestOf(ctx, h.source.inv.Images[0].ID)
	require.NoError(t, err)
	_, err = target.images.Create(ctx, images.Image{Name: "docker.io/library/own:1", Target: manifest})
	require.NoError(t, err)
	_, err = h.migration(target).Undo(t.Context(), nil)
	require.NoError(t, err)
	h.collect()
	require.NoError(t, images.Walk(ctx, images.ChildrenHandler(target.content), manifest))
	for _, id := range h.source.inv.Images[0].Layers {
		_, err := target.snapshots.Stat(ctx, h.source.layerOf(id).ChainID.String())
		require.NoError(t, err)
	}
}

// TestUndoKeepsCommits: "docker commit" has made the snapshot of an image on the init layer, where it stays usable.
func TestUndoKeepsCommits(t *testing.T) {
	h := newHost(t)
	h.newSource(directories)
	target := h.target(h.options(Moby))
	h.run(target)
	ctx := h.in(Moby)
	_, err := target.snapshots.Prepare(ctx, "key", theContainer+initSuffix)
	require.NoError(t, err)
	require.NoError(t, target.snapshots.Commit(ctx, "committed", "key", snapshots.WithLabels(map[string]string{rootLabel: "image"})))
	_, err = h.migration(target).Undo(t.Context(), nil)
	requireNoProblem(t, err)
	h.collect()
	_, err = target.snapshots.View(ctx, "view", "committed")
	require.NoError(t, err)
	_, err = target.snapshots.Stat(ctx, theContainer)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	h.run(target) // accepts the init layer
	_, err = h.migration(target).Verify(t.Context(), nil)
	requireNoProblem(t, err)
}

// TestContainersOfOthers: another program's container does not come to Docker, nor do its layers. The plan says so. Docker before
// 0.7 is another program.
func TestContainersOfOthers(t *testing.T) {
	for _, program := range []string{containersstorage.Program, oldgraph.Program} {
		t.Run(program, func(t *testing.T) { testContainersOfOthers(t, program) })
	}
}

func testContainersOfOthers(t *testing.T, program string) {
	h := newHost(t)
	s := h.newSource(directories)
	s.inv.Program = program
	for _, root := range []string{h.dockerRoot(), ""} {
		require.NoError(t, os.RemoveAll(filepath.Join(h.dockerRoot(), containersDir)))
		o := h.options(Moby)
		o.DockerRoot = root
		target := h.target(o)
		plan, err := h.migration(target).Plan(t.Context())
		require.NoError(t, err)
		assert.Empty(t, plan.Containers)
		_, err = h.migration(target).Run(t.Context(), nil)
		var partial *migrate.PartialError
		require.ErrorAs(t, err, &partial)
		assert.Len(t, partial.Problems, 3)
		for _, problems := range [][]migrate.Problem{plan.Problems, partial.Problems} {
			assert.ErrorIs(t, problems[0].Err, errdefs.ErrNotImplemented)
			assert.ErrorContains(t, problems[0].Err, "in another --namespace")
		}
		h.requireImages(target)
		_, err = target.snapshots.Stat(h.in(Moby), theContainer+initSuffix)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		held, err := target.leases.List(h.in(Moby))
		require.NoError(t, err)
		assert.Empty(t, held)
		_, err = h.migration(target).Undo(t.Context(), nil)
		requireNoProblem(t, err)
	}
}

// TestCheck: clashes are found before anything is changed.
func TestCheck(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	target := h.target(h.options(Moby))
	ctx := h.in(Moby)
	require.NoError(t, target.Check(t.Context(), s, &s.inv))

	other := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("other"), Size: 5}
	_, err := target.images.Create(ctx, images.Image{Name: "docker.io/library/app:1", Target: other})
	require.NoError(t, err)
	err = target.Check(t.Context(), s, &s.inv)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	assert.ErrorContains(t, err, "docker.io/library/app:1")
	require.NoError(t, target.images.Delete(ctx, "docker.io/library/app:1"))

	for _, key := range []string{theContainer, theContainer + initSuffix} {
		_, err := target.snapshots.Prepare(ctx, key, "")
		require.NoError(t, err)
		err = target.Check(t.Context(), s, &s.inv)
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
		require.NoError(t, target.snapshots.Remove(ctx, key))
	}

	running := fault.New(errdefs.ErrFailedPrecondition, "an engine runs")
	target.opts.Idle = func(context.Context) error { return running }
	require.ErrorIs(t, target.Check(t.Context(), s, &s.inv), running)
	require.ErrorIs(t, target.Undo(t.Context()), running)
	target.opts.Idle = func(context.Context) error { return nil }
	require.NoError(t, target.Check(t.Context(), s, &s.inv))

	inv := s.inv
	inv.Containers = []migrate.Container{{ID: "../up", Layer: "mount"}}
	require.ErrorIs(t, target.Check(t.Context(), s, &inv), errdefs.ErrInvalidArgument)
}

// TestOptions: malformed options are refused.
func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Namespace: "", StateDir: "x"}, {Namespace: "a/b", StateDir: "x"}, {Namespace: "a"},
	} {
		_, err := New(t.Context(), o)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	_, err := New(t.Context(), Options{Address: filepath.Join(t.TempDir(), "absent"), Namespace: "a", StateDir: "x"})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}

// TestDamage: a layer whose tar cannot be made again does not come along, and leaves neither blob nor upload.
func TestDamage(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	target := h.target(h.options(Moby))
	require.NoError(t, target.Check(t.Context(), s, &s.inv))
	layer := s.layerOf("base-id")
	good := string(s.parts["base-id"])
	for name, parts := range map[string]string{
		"cut off":       good[:len(good)/2],
		"empty":         "",
		"no JSON":       "{",
		"another file":  strings.ReplaceAll(good, "etc/motd", "etc/gone"),
		"absent file":   strings.ReplaceAll(good, "etc/motd", "etc/none"),
		"a directory":   strings.ReplaceAll(good, "etc/motd", "etc"),
		"outside":       strings.ReplaceAll(good, "etc/motd", "../../../../../../../../etc/hostname"),
		"a longer file": strings.ReplaceAll(good, `"size":4`, `"size":5`),
		"unknown part":  good + `{"type":9}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := s.Open(t.Context(), layer.ID)
			require.NoError(t, err)
			defer c.Close()
			err = target.MakeLayer(t.Context(), layer, c, strings.NewReader(parts))
			require.Error(t, err)
			has, err := target.Has(t.Context(), migrate.Item{Layer: layer})
			require.NoError(t, err)
			assert.False(t, has)
			require.NoError(t, target.Remove(t.Context(), migrate.Item{Layer: layer}))
			assert.False(t, slices.ContainsFunc(h.state(Moby), func(line string) bool { return !strings.HasPrefix(line, "lease") }), h.state(Moby))
		})
	}
	c, err := s.Open(t.Context(), layer.ID)
	require.NoError(t, err)
	defer c.Close()
	require.ErrorIs(t, target.MakeLayer(t.Context(), layer, c, nil), errdefs.ErrDataLoss, "the tar has comments that the tree has not")
}

// TestWithoutParts: a layer whose tar is as Cowshed writes it comes along without its parts.
func TestWithoutParts(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	target := h.target(h.options(Moby))
	for _, id := range []string{"base-id", "top-id"} {
		layer := s.layerOf(id)
		layer.DiffID = h.writtenBy(target, id, layer.Parent)
		layer.ChainID = layer.DiffID
		if layer.Parent != "" {
			layer.ChainID = digest.FromString(s.layerOf(layer.Parent).ChainID.String() + " " + layer.DiffID.String())
		}
	}
	require.NoError(t, target.Check(t.Context(), s, &s.inv))
	for _, id := range []string{"base-id", "top-id"} {
		c, err := s.Open(t.Context(), id)
		require.NoError(t, err)
		require.NoError(t, target.MakeLayer(t.Context(), s.layerOf(id), c, nil))
		require.NoError(t, c.Close())
		require.NoError(t, target.Verify(t.Context(), migrate.Item{Layer: s.layerOf(id)}, s))
	}
}

// TestVerifyFinds: a tree or a blob that differs is found.
func TestVerifyFinds(t *testing.T) {
	h := newHost(t)
	s := h.newSource(overlays)
	h.run(h.target(h.options(Moby)))
	target := h.target(h.options(Moby))
	for _, id := range []string{"base-id", "top-id", "mount-init", "mount"} {
		require.NoError(t, target.Verify(t.Context(), migrate.Item{Layer: s.layerOf(id)}, s))
		file := filepath.Join(s.dir, id, "added")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.ErrorIs(t, target.Verify(t.Context(), migrate.Item{Layer: s.layerOf(id)}, s), errdefs.ErrDataLoss)
		require.NoError(t, os.Remove(file))
	}
	image := s.inv.Images[0]
	image.Config = append(slices.Clone(image.Config), ' ')
	require.ErrorIs(t, target.Verify(t.Context(), migrate.Item{Image: &image}, s), errdefs.ErrDataLoss)
	c := s.inv.Containers[0]
	require.NoError(t, target.Verify(t.Context(), migrate.Item{Container: &c}, s))
	c.Image = s.inv.Images[0].ID
	if c.Image == s.inv.Containers[0].Image {
		c.Image = s.inv.Images[1].ID
	}
	require.ErrorIs(t, target.Verify(t.Context(), migrate.Item{Container: &c}, s), errdefs.ErrDataLoss)
}

// TestHow: on the filesystem of Cowshed, subvolumes are cloned and files reflinked.
func TestHow(t *testing.T) {
	for form, want := range map[form]migrate.How{subvolumes: migrate.Cloned, directories: migrate.Reflinked, overlays: migrate.Reflinked} {
		t.Run(string(form), func(t *testing.T) {
			h := newHost(t)
			s := h.newSource(form)
			target := h.target(h.options(Moby))
			c, err := s.Open(t.Context(), "base-id")
			require.NoError(t, err)
			defer c.Close()
			how, bytes, err := target.How(t.Context(), s.layerOf("base-id"), c, migrate.Coming{})
			require.NoError(t, err)
			assert.Equal(t, want, how)
			assert.Zero(t, bytes)
			how, _, err = target.How(t.Context(), s.layerOf("top-id"), c, migrate.Coming{How: migrate.Copied})
			require.NoError(t, err)
			assert.Equal(t, migrate.Reflinked, how, "onto a copy")
			target.root, target.offers = "", nil
			how, _, err = target.How(t.Context(), s.layerOf("base-id"), c, migrate.Coming{})
			require.NoError(t, err)
			assert.Equal(t, migrate.Copied, how)
		})
	}
}
