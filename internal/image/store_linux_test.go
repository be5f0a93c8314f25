package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/sys/user"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// newTestStore returns an empty store on a btrfs of its own.
func newTestStore(t *testing.T) *Store {
	t.Helper()
	return newTestStoreOn(t, testfs.Btrfs(t))
}

func newTestStoreOn(t *testing.T, root string, options ...string) *Store {
	t.Helper()
	opened, err := btrfs.Init(filepath.Join(root, "btrfs"), options, user.IdentityMapping{})
	require.NoError(t, err)
	driver, ok := opened.(*cowdriver.Driver)
	require.True(t, ok)
	t.Cleanup(func() { assert.NoError(t, driver.Cleanup()) })
	return NewStore(filepath.Join(root, "images"), driver, nil)
}

func (s *Store) mustImport(t *testing.T, ref string, opts ImportOptions) *Imported {
	t.Helper()
	imported, err := s.importRef(t, ref, opts)
	require.NoError(t, err)
	return imported
}

func (s *Store) importRef(t *testing.T, ref string, opts ImportOptions) (*Imported, error) {
	t.Helper()
	src, err := Open(t.Context(), mustParse(t, ref), OpenOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	return s.Import(t.Context(), src, opts)
}

func (s *Store) mustExport(t *testing.T, what, ref string, opts ExportOptions) *Exported {
	t.Helper()
	exported, err := s.Export(t.Context(), what, mustParseDestination(t, ref), opts)
	require.NoError(t, err)
	return exported
}

func mustParseDestination(t *testing.T, s string) Reference {
	t.Helper()
	ref, err := ParseDestination(s)
	require.NoError(t, err)
	return ref
}

// layerNames lists the layers of the driver, sorted.
func (s *Store) layerNames(t *testing.T) []string {
	t.Helper()
	names := []string{}
	for v, err := range s.driver.Backend().Volumes(t.Context()) {
		require.NoError(t, err)
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return names
}

// files lists the store's own files below its directory.
func (s *Store) files(t *testing.T) []string {
	t.Helper()
	files := []string{}
	for _, dir := range []string{recordsDir, tarSplitDir} {
		entries, err := os.ReadDir(s.path(dir))
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(t, err)
		}
		for _, e := range entries {
			files = append(files, e.Name())
		}
	}
	return files
}

// requireUnchanged requires that do changes neither layers nor files.
func (s *Store) requireUnchanged(t *testing.T, do func()) {
	t.Helper()
	layers, files := s.layerNames(t), s.files(t)
	do()
	require.Equal(t, layers, s.layerNames(t))
	require.Equal(t, files, s.files(t))
}

func TestImportMakesTheTree(t *testing.T) {
	s := newTestStore(t)
	img := makeImage(t, baseTar(t), upperTar(t))
	imported := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
	assert.Equal(t, "app:1", imported.Image.Name)
	assert.Equal(t, imageID(t, img), imported.Image.ID())
	assert.Equal(t, diffIDs(t, img), imported.Image.DiffIDs())
	assert.Equal(t, imported.Image.Layers(), imported.Made)
	assert.Equal(t, layerIDs(diffIDs(t, img)), imported.Image.Layers())

	dir, err := s.driver.Get(imported.Image.Top(), "")
	require.NoError(t, err)
	defer func() { require.NoError(t, s.driver.Put(imported.Image.Top())) }()
	assert.NoFileExists(t, filepath.Join(dir, "etc/passwd"), "the upper layer deletes it")
	data, err := os.ReadFile(filepath.Join(dir, "etc/hosts"))
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1 localhost\n", string(data))
	link, err := os.Stat(filepath.Join(dir, "bin/link"))
	require.NoError(t, err)
	tool, err := os.Stat(filepath.Join(dir, "usr/bin/tool"))
	require.NoError(t, err)
	assert.True(t, os.SameFile(link, tool))

	got, err := s.Get("app:1")
	require.NoError(t, err)
	assert.Equal(t, imported.Image, got)
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	assert.Empty(t, problems)
}

func TestImportReusesLayers(t *testing.T) {
	s := newTestStore(t)
	base, upper := baseTar(t), upperTar(t)
	one := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"one:1": makeImage(t, base)}), ImportOptions{})
	two := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"two:1": makeImage(t, base, upper)}), ImportOptions{})
	assert.Equal(t, one.Made, two.Reused)
	assert.Equal(t, []string{two.Image.Top()}, two.Made)

	t.Run("the same again", func(t *testing.T) {
		again := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"two:1": makeImage(t, base, upper)}), ImportOptions{})
		assert.Empty(t, again.Made)
	})
	t.Run("removed while the other needs it", func(t *testing.T) {
		removed, err := s.Remove(t.Context(), "one:1")
		require.NoError(t, err)
		assert.Equal(t, &Removed{Kept: one.Image.Layers(), Needed: []string{"image two:1", "layer " + short(two.Image.Top())}}, removed)
		removed, err = s.Remove(t.Context(), "two:1")
		require.NoError(t, err)
		assert.Equal(t, []string{two.Image.Top(), one.Image.Top()}, removed.Layers)
		assert.Empty(t, s.layerNames(t))
		assert.Empty(t, s.files(t))
	})
}

// TestRemoveShared: a layer stays if only a fork shares it, whose parent is a snapshot of a layer that is gone. The image above goes.
func TestRemoveShared(t *testing.T) {
	s := newTestStoreOn(t, testfs.Btrfs(t), "btrfs.root_style=shared")
	base, upper := baseTar(t), upperTar(t)
	one := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": makeImage(t, base, upper)}), ImportOptions{}).Image
	more := makeTar(t, entry{name: "more"})
	two := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:2": makeImage(t, base, upper, more)}), ImportOptions{}).Image
	s.makeLayer(t, "web", one.Top(), "file", "data")
	backend, ctx := s.driver.Backend(), t.Context()
	require.NoError(t, cowcommon.Fork(ctx, backend, "web", "moment", []string{"fork"}, cowcommon.VolumeOptions{}))
	require.NoError(t, backend.Remove(ctx, "web"))
	removed, err := s.Remove(ctx, "app:1")
	require.NoError(t, err)
	assert.Contains(t, removed.Needed, "layer fork")
	removed, err = s.Remove(ctx, "app:2")
	require.NoError(t, err)
	assert.Equal(t, &Removed{Layers: []string{two.Top()}, Kept: []string{one.Top(), one.Layers()[0]}, Needed: []string{"layer fork", "layer moment"}}, removed)
	images, err := s.List()
	require.NoError(t, err)
	assert.Empty(t, images)
	for _, name := range []string{"fork", "moment"} {
		require.NoError(t, backend.Remove(ctx, name))
	}
	require.NoError(t, s.RemoveLayer(ctx, one.Top()))
	require.NoError(t, s.RemoveLayer(ctx, one.Layers()[0]))
}

func TestImportTakenName(t *testing.T) {
	s := newTestStore(t)
	first := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": makeImage(t, baseTar(t))}), ImportOptions{})
	other := writeDockerArchive(t, map[string]v1.Image{"app:1": makeImage(t, upperTar(t))})
	s.requireUnchanged(t, func() {
		_, err := s.importRef(t, other, ImportOptions{})
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	})
	second := s.mustImport(t, other, ImportOptions{Replace: true})
	assert.NotEqual(t, first.Image.ID(), second.Image.ID())
	assert.Equal(t, []string{second.Image.Top()}, s.layerNames(t), "what only the replaced image had is gone")
	got, err := s.Get("app:1")
	require.NoError(t, err)
	assert.Equal(t, second.Image.ID(), got.ID())
}

// Images that come and go keep every digest, whatever they are kept in on the way.
func TestRoundTrips(t *testing.T) {
	images := map[string]v1.Image{"made": makeImage(t, baseTar(t), upperTar(t))}
	img, err := random.Image(4096, 3)
	require.NoError(t, err)
	images["random"] = img

	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")

	for label, img := range images {
		for _, format := range []layertar.Format{layertar.Plain, layertar.Gzip, layertar.Zstd} {
			t.Run(label+" "+format.String(), func(t *testing.T) {
				dir := t.TempDir()
				for _, ref := range []string{
					"oci:" + dir + "/layout:v1", "oci-archive:" + dir + "/oci.tar:v1", "docker-archive:" + dir + "/docker.tar:app:1",
					"docker://" + host + "/" + label + ":" + format.String(),
				} {
					s := newTestStore(t)
					imported := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
					exported := s.mustExport(t, "app:1", ref, ExportOptions{Format: format, Exact: true})
					assert.Equal(t, imageID(t, img), exported.Image, "the image's ID")
					assert.Equal(t, diffIDs(t, img), exported.Layers)

					_, err := s.Remove(t.Context(), "app:1")
					require.NoError(t, err)
					require.Empty(t, s.layerNames(t))
					again := s.mustImport(t, ref, ImportOptions{Name: "again"})
					assert.Equal(t, imported.Image.Config, again.Image.Config)
					assert.Equal(t, imported.Image.Layers(), again.Made)
				}
			})
		}
	}
}

// requireValid requires all digests and sizes of an image to be right.
func requireValid(t *testing.T, img v1.Image) {
	t.Helper()
	config, err := img.RawConfigFile()
	require.NoError(t, err)
	assert.Equal(t, imageID(t, img), digest.FromBytes(config))
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Len(t, layers, len(diffIDs(t, img)))
	for i, layer := range layers {
		stored, err := layer.Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(stored)
		require.NoError(t, err)
		want, err := layer.Digest()
		require.NoError(t, err)
		assert.Equal(t, want.String(), digest.FromBytes(data).String())
		size, err := layer.Size()
		require.NoError(t, err)
		assert.EqualValues(t, len(data), size)
		plain, err := layer.Uncompressed()
		require.NoError(t, err)
		data, err = io.ReadAll(plain)
		require.NoError(t, err)
		assert.Equal(t, diffIDs(t, img)[i], digest.FromBytes(data))
	}
}

// The output can be read by another implementation, which checks all digests.
func TestExportIsValid(t *testing.T) {
	s := newTestStore(t)
	img := makeImage(t, baseTar(t), upperTar(t))
	s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
	dir := t.TempDir()
	s.mustExport(t, "app:1", "docker-archive:"+dir+"/docker.tar:app:1", ExportOptions{})
	tag, err := name.NewTag("app:1")
	require.NoError(t, err)
	read, err := tarball.ImageFromPath(dir+"/docker.tar", &tag)
	require.NoError(t, err)
	requireValid(t, read)
	assert.Equal(t, imageID(t, img), imageID(t, read))

	s.mustExport(t, "app:1", "oci:"+dir+"/oci:v1", ExportOptions{Format: layertar.Zstd})
	s.mustExport(t, "app:1", "oci:"+dir+"/oci:v2", ExportOptions{Format: layertar.Gzip})
	s.mustExport(t, "app:1", "oci:"+dir+"/oci:v1", ExportOptions{Format: layertar.Gzip})
	index, err := layout.ImageIndexFromPath(dir + "/oci")
	require.NoError(t, err)
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	for _, d := range manifest.Manifests {
		read, err := index.Image(d.Digest)
		require.NoError(t, err)
		requireValid(t, read)
	}
	assert.Len(t, manifest.Manifests, 2, "an image of the same name is replaced, others stay")
	left, err := filepath.Glob(dir + "/oci/" + temporaryPrefix + "*")
	require.NoError(t, err)
	assert.Empty(t, left)
	left, err = filepath.Glob(dir + "/oci/blobs/" + temporaryPrefix + "*")
	require.NoError(t, err)
	assert.Empty(t, left)
}

// makeLayer makes a layer on top of parent that changes one thing.
func (s *Store) makeLayer(t *testing.T, name, parent, file, data string) {
	t.Helper()
	require.NoError(t, s.driver.CreateReadWrite(name, parent, nil))
	dir, err := s.driver.Get(name, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(data), 0o644))
	require.NoError(t, s.driver.Put(name))
}

func TestExportLayers(t *testing.T) {
	s := newTestStore(t)
	img := makeImage(t, baseTar(t), upperTar(t))
	imported := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
	s.makeLayer(t, "build", imported.Image.Top(), "etc/built", "built")
	s.makeLayer(t, "run", "build", "etc/ran", "ran")
	dir := t.TempDir()

	t.Run("on an image", func(t *testing.T) {
		exported := s.mustExport(t, "run", "oci:"+dir+"/run:v1", ExportOptions{Format: layertar.Gzip})
		require.Len(t, exported.Layers, 4)
		assert.Equal(t, diffIDs(t, img), exported.Layers[:2])

		again := s.mustImport(t, "oci:"+dir+"/run:v1", ImportOptions{Name: "run:1"})
		var config map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(again.Image.Config, &config))
		assert.JSONEq(t, `{"Env":["PATH=/bin"]}`, string(config["config"]))
		assert.Len(t, again.Image.parsed.History, 4)
		assert.Contains(t, again.Image.parsed.History[3].CreatedBy, "run")
		v, err := s.driver.Backend().Stat(t.Context(), "run")
		require.NoError(t, err)
		assert.WithinDuration(t, v.Created, *again.Image.parsed.Created, 0)

		c, err := s.driver.Compare(t.Context(), again.Image.Top(), "run", cowcommon.Walk)
		require.NoError(t, err)
		assert.Empty(t, c.Changes, "the trees are the same")
		require.NoError(t, c.Close())
	})
	t.Run("the same bytes again", func(t *testing.T) {
		var first, second bytes.Buffer
		s.mustExport(t, "run", "oci-archive:-:v1", ExportOptions{Format: layertar.Zstd, Stdout: &first})
		s.mustExport(t, "run", "oci-archive:-:v1", ExportOptions{Format: layertar.Zstd, Stdout: &second})
		assert.True(t, bytes.Equal(first.Bytes(), second.Bytes()))
	})
	t.Run("SOURCE_DATE_EPOCH", func(t *testing.T) {
		epoch := time.Unix(1500000000, 0).UTC()
		s.mustExport(t, "run", "oci:"+dir+"/epoch:v1", ExportOptions{Epoch: &epoch})
		again := s.mustImport(t, "oci:"+dir+"/epoch:v1", ImportOptions{Name: "epoch:1"})
		assert.Equal(t, epoch, *again.Image.parsed.Created)
		info, err := os.Stat(s.fileIn(t, again.Image.Top(), "etc/ran"))
		require.NoError(t, err)
		assert.Equal(t, epoch, info.ModTime().UTC())
	})
	t.Run("on a lower layer of an image", func(t *testing.T) {
		s.makeLayer(t, "side", imported.Image.Layers()[0], "etc/side", "side")
		exported := s.mustExport(t, "side", "oci:"+dir+"/side:v1", ExportOptions{})
		require.Len(t, exported.Layers, 2)
		assert.Equal(t, diffIDs(t, img)[0], exported.Layers[0])
	})
	t.Run("on nothing", func(t *testing.T) {
		s.makeLayer(t, "scratch", "", "file", "data")
		exported := s.mustExport(t, "scratch", "oci:"+dir+"/scratch:v1", ExportOptions{})
		assert.Len(t, exported.Layers, 1)
		again := s.mustImport(t, "oci:"+dir+"/scratch:v1", ImportOptions{})
		assert.Equal(t, HostPlatform(), again.Image.Platform())
	})
}

func (s *Store) fileIn(t *testing.T, layer, file string) string {
	t.Helper()
	dir, err := s.driver.Get(layer, "")
	require.NoError(t, err)
	require.NoError(t, s.driver.Put(layer))
	return filepath.Join(dir, file)
}

// A layer whose tar is not known, or that was changed, is exported as it is.
func TestExportWithoutTheTar(t *testing.T) {
	dir := t.TempDir()
	for name, spoil := range map[string]func(t *testing.T, s *Store, layer string){
		"record is gone": func(t *testing.T, s *Store, layer string) { require.NoError(t, os.Remove(s.splitFile(layer))) },
		"record is damaged": func(t *testing.T, s *Store, layer string) {
			require.NoError(t, os.WriteFile(s.splitFile(layer), []byte("junk"), 0o600))
		},
		"layer was changed": func(t *testing.T, s *Store, layer string) {
			require.NoError(t, os.WriteFile(s.fileIn(t, layer, "etc/passwd"), []byte("evil"), 0o644))
		},
		"file of a layer is gone": func(t *testing.T, s *Store, layer string) {
			require.NoError(t, os.Remove(s.fileIn(t, layer, "etc/passwd")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t)
			img := makeImage(t, baseTar(t))
			imported := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
			spoil(t, s, imported.Image.Top())
			ref := "oci:" + filepath.Join(dir, strings.ReplaceAll(name, " ", "-")) + ":v1"
			_, err := s.Export(t.Context(), "app:1", mustParseDestination(t, ref), ExportOptions{Exact: true})
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			assert.ErrorContains(t, err, string(imageID(t, img)))
			assert.NoDirExists(t, mustParseDestination(t, ref).Path)
			exported := s.mustExport(t, "app:1", ref, ExportOptions{})
			assert.NotEqual(t, diffIDs(t, img), exported.Layers)
			assert.Equal(t, imageID(t, img), exported.Was)
			if assert.Len(t, exported.Changes, 1) {
				assert.Contains(t, exported.Changes[0], string(diffIDs(t, img)[0]))
			}
			again := s.mustImport(t, ref, ImportOptions{Name: "again"})
			assert.Contains(t, string(again.Image.Config), "PATH=/bin", "the config stays otherwise")
			c, err := s.driver.Compare(t.Context(), again.Image.Top(), imported.Image.Top(), cowcommon.Walk)
			require.NoError(t, err)
			assert.Empty(t, c.Changes)
			require.NoError(t, c.Close())
		})
	}
}

// flip changes one byte of a file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// An import that fails names the fault and leaves nothing.
func TestImportBadLayers(t *testing.T) {
	s := newTestStore(t)
	s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"there:1": makeImage(t, baseTar(t))}), ImportOptions{})
	good := []entry{{name: "a/"}, {name: "a/b", data: "b"}}
	goodTar := makeTar(t, good...)

	// docker makes an archive whose config says other diff IDs than the layer has.
	docker := func(layer []byte, diffID digest.Digest) string {
		config, err := json.Marshal(ocispec.Image{
			Platform: HostPlatform(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(baseTar(t)), diffID}},
		})
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "a.tar")
		require.NoError(t, os.WriteFile(path, makeTar(t,
			entry{name: "manifest.json", data: `[{"Config":"c","RepoTags":["bad:1"],"Layers":["base","layer"]}]`},
			entry{name: "c", data: string(config)}, entry{name: "base", data: string(baseTar(t))}, entry{name: "layer", data: string(layer)},
		), 0o644))
		return "docker-archive:" + path
	}
	// oci writes a layout and damages its layer.
	oci := func(damage func(path string)) string {
		img := makeImage(t, baseTar(t), goodTar)
		dir := writeLayout(t, map[string]v1.Image{"bad": img})
		layers, err := img.Layers()
		require.NoError(t, err)
		h, err := layers[1].Digest()
		require.NoError(t, err)
		damage(filepath.Join(dir, "blobs/sha256", h.Hex))
		return "oci:" + dir
	}
	for _, test := range []struct {
		name, ref string
		is        error // nil: any
		says      string
	}{
		{"other diff ID", docker(goodTar, digest.FromString("x")), errdefs.ErrDataLoss, digest.FromBytes(goodTar).String()},
		{"trailing bytes count", docker(append(bytes.Clone(goodTar), 0), digest.FromBytes(goodTar)), errdefs.ErrDataLoss, "digest"},
		{"not a tar", docker([]byte(strings.Repeat("junk", 1000)), digest.FromString("x")), nil, "tar"},
		{"tar that ends early", docker(goodTar[:700], digest.FromBytes(goodTar[:700])), nil, "layer 2 of 2"},
		{"hard link with data", docker(rawTar(rawFile("f", "data"), rawEntry(tar.TypeLink, "h", "f", 4, "data")), digest.FromString("x")), layertar.ErrMalformed, "\"h\""},
		{"name that leads out", docker(makeTar(t, entry{name: "../../../../escaped", data: "x"}), digest.FromString("x")), nil, ""},
		{"link that leads out", docker(makeTar(t,
			entry{name: "out", change: func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeSymlink, "/" }},
			entry{name: "out/escaped", data: "x"}), digest.FromString("x")), nil, ""},
		{"blob altered", oci(func(path string) { flip(t, path, 100) }), nil, "layer 2 of 2"},
		{"blob cut", oci(func(path string) { require.NoError(t, os.Truncate(path, 60)) }), nil, "layer 2 of 2"},
		{"blob longer", oci(func(path string) {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.Write([]byte{0})
			require.NoError(t, errors.Join(err, f.Close()))
		}), nil, "layer 2 of 2"},
		{"blob gone", oci(func(path string) { require.NoError(t, os.Remove(path)) }), ErrMalformed, "layer 2 of 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.requireUnchanged(t, func() {
				_, err := s.importRef(t, test.ref, ImportOptions{})
				require.Error(t, err)
				if test.is != nil {
					require.ErrorIs(t, err, test.is)
				}
				assert.ErrorContains(t, err, test.says)
			})
			assert.NoFileExists(t, "/escaped")
		})
	}
}

func TestImportStopped(t *testing.T) {
	s := newTestStore(t)
	base := baseTar(t)
	img := makeImage(t, base, upperTar(t))
	src, err := Open(t.Context(), mustParse(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img})), OpenOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	ctx, cancel := context.WithCancel(t.Context())
	// The second layer stops the import in the middle of its data.
	open := src.layers[1].open
	src.layers[1].open = func(ctx context.Context) (io.ReadCloser, error) {
		r, err := open(ctx)
		return struct {
			io.Reader
			io.Closer
		}{&cancelReader{r, cancel}, r}, err
	}
	s.requireUnchanged(t, func() {
		_, err := s.Import(ctx, src, ImportOptions{})
		require.ErrorIs(t, err, context.Canceled)
	})
}

type cancelReader struct {
	r      io.Reader
	cancel func()
}

func (c *cancelReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p[:min(len(p), 32)])
	c.cancel()
	return n, err
}

func TestImportSweepsWhatACrashLeft(t *testing.T) {
	s := newTestStore(t)
	img := makeImage(t, baseTar(t))
	left := partialName(layerIDs(diffIDs(t, img))[0])
	require.NoError(t, s.driver.Create(left, "", nil))
	require.NoError(t, s.driver.Create("mine-partial-0123456789abcdef", "", nil))
	l, err := s.lock()
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.NoError(t, os.WriteFile(s.path(tarSplitDir, temporaryPrefix+"1"), nil, 0o600))
	require.NoError(t, os.WriteFile(s.path(tarSplitDir, strings.Repeat("a", 64)+splitSuffix), nil, 0o600))
	require.NoError(t, os.WriteFile(s.path(recordsDir, temporaryPrefix+"1"), nil, 0o600))

	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].What, "cut off")

	t.Run("not while another import is at work", func(t *testing.T) {
		other, alone, err := s.lockShared(t.Context())
		require.NoError(t, err)
		require.True(t, alone)
		require.NoError(t, other.Shared(t.Context()))
		s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
		assert.Contains(t, s.layerNames(t), left)
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		assert.Empty(t, problems, "it may be the other's")
		_, err = s.Remove(t.Context(), "app:1")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.NoError(t, other.Close())
	})

	imported := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
	assert.Equal(t, []string{imported.Image.Top(), "mine-partial-0123456789abcdef"}, s.layerNames(t))
	assert.Equal(t, []string{"app:1.json", imported.Image.Top() + splitSuffix}, s.files(t))
}

// removing removes an image when the first bytes of an archive come.
type removing struct {
	bytes.Buffer
	remove func() error // nil: it has been called
}

func (r *removing) Write(data []byte) (int, error) {
	if remove := r.remove; remove != nil {
		r.remove = nil
		if err := remove(); err != nil {
			return 0, err
		}
	}
	return r.Buffer.Write(data)
}

// TestExportToSlowReader: a slow reader of an archive keeps nobody from removing images, and gets all of it.
func TestExportToSlowReader(t *testing.T) {
	s := newTestStore(t)
	img := makeImage(t, baseTar(t), upperTar(t))
	s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{})
	out := &removing{remove: func() error {
		_, err := s.Remove(t.Context(), "app:1")
		return err
	}}
	_, err := s.Export(t.Context(), "app:1", Reference{Transport: DockerArchive, Path: Stdio}, ExportOptions{Stdout: out})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "app.tar")
	require.NoError(t, os.WriteFile(path, out.Bytes(), 0o600))
	assert.Equal(t, imageID(t, img), s.mustImport(t, "docker-archive:"+path, ImportOptions{}).Image.ID())
}

func TestImportsAtOnce(t *testing.T) {
	s := newTestStore(t)
	img := makeImage(t, baseTar(t), upperTar(t))
	path := writeDockerArchive(t, map[string]v1.Image{"app:1": img})
	const n = 4
	done := make(chan error, n)
	for range n {
		go func() {
			src, err := Open(t.Context(), Reference{Transport: DockerArchive, Path: path}, OpenOptions{})
			if err == nil {
				_, err = s.Import(t.Context(), src, ImportOptions{})
				err = errors.Join(err, src.Close())
			}
			done <- err
		}()
	}
	for range n {
		require.NoError(t, testfs.Receive(t, done))
	}
	assert.Len(t, s.layerNames(t), 2)
	assert.Len(t, s.files(t), 3)
}

func TestImportRootFS(t *testing.T) {
	s := newTestStore(t)
	data := baseTar(t)
	path := filepath.Join(t.TempDir(), "debian.tar")
	require.NoError(t, os.WriteFile(path, data, 0o644))
	imported := s.mustImport(t, "rootfs:"+path, ImportOptions{})
	assert.Equal(t, "debian", imported.Image.Name)
	assert.Equal(t, digest.FromBytes(data).Encoded(), imported.Image.Top())

	again := s.mustImport(t, "rootfs:"+path, ImportOptions{Name: "again"})
	assert.Equal(t, []string{imported.Image.Top()}, again.Reused)
	assert.Len(t, s.layerNames(t), 1)

	s.requireUnchanged(t, func() {
		bad := filepath.Join(t.TempDir(), "bad.tar") // it ends in a file
		require.NoError(t, os.WriteFile(bad, data[:1300], 0o644))
		_, err := s.importRef(t, "rootfs:"+bad, ImportOptions{})
		require.Error(t, err)
		_, err = s.importRef(t, "rootfs:"+path, ImportOptions{Name: "bad name"})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	})
}

func TestRegistry(t *testing.T) {
	s := newTestStore(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	img := makeImage(t, baseTar(t), upperTar(t))
	tag, err := name.NewTag(host + "/team/app:1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, img))

	imported := s.mustImport(t, "docker://"+tag.String(), ImportOptions{})
	assert.Equal(t, tag.String(), imported.Image.Name)
	assert.Equal(t, imageID(t, img), imported.Image.ID())

	s.makeLayer(t, "web", imported.Image.Top(), "etc/web", "web")
	exported := s.mustExport(t, "web", "docker://"+host+"/team/web:1", ExportOptions{Format: layertar.Zstd})
	pushed, err := name.NewTag(host + "/team/web:1")
	require.NoError(t, err)
	read, err := remote.Image(pushed)
	require.NoError(t, err)
	requireValid(t, read)
	assert.Equal(t, exported.Image, imageID(t, read))

	t.Run("not there", func(t *testing.T) {
		_, err := Open(t.Context(), mustParse(t, "docker://"+host+"/team/none:1"), OpenOptions{})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	})
}

func TestExportRefusals(t *testing.T) {
	s := newTestStore(t)
	s.makeLayer(t, "layer", "", "file", "data")
	dir := t.TempDir()
	file, other := filepath.Join(dir, "there.tar"), filepath.Join(dir, "other")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o644))
	require.NoError(t, os.Mkdir(other, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(other, "precious"), nil, 0o644))
	for _, test := range []struct {
		what string
		ref  Reference
		is   error
	}{
		{"none", Reference{Transport: OCILayout, Path: filepath.Join(dir, "new")}, errdefs.ErrNotFound},
		{"layer", Reference{Transport: OCIArchive, Path: file}, errdefs.ErrAlreadyExists},
		{"layer", Reference{Transport: OCILayout, Path: other}, errdefs.ErrAlreadyExists},
		{"layer", Reference{Transport: OCILayout, Path: Stdio}, errdefs.ErrInvalidArgument},
		{"layer", Reference{Transport: RootFS, Path: "x"}, errdefs.ErrInvalidArgument},
		{"layer", Reference{Path: "x"}, errdefs.ErrInvalidArgument},
	} {
		_, err := s.Export(t.Context(), test.what, test.ref, ExportOptions{})
		require.ErrorIs(t, err, test.is, test.ref.String())
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 2)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(data))

	t.Run("stopped", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Export(ctx, "layer", Reference{Transport: OCILayout, Path: filepath.Join(dir, "new")}, ExportOptions{})
		require.ErrorIs(t, err, context.Canceled)
		assert.NoDirExists(t, filepath.Join(dir, "new"))
	})
}

func TestRecords(t *testing.T) {
	s := newTestStore(t)
	imported := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"reg.example/team/app:1": makeImage(t, baseTar(t))}), ImportOptions{})
	name := imported.Image.Name
	got, err := s.Get(name)
	require.NoError(t, err)
	assert.Equal(t, name, got.Name)

	_, err = s.Get("none")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = s.Get("../records/x")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)

	t.Run("a damaged record", func(t *testing.T) {
		bad := s.path(recordsDir, "bad.json")
		for _, data := range []string{"", "{", `{"version":2,"name":"bad"}`, `{"version":1,"name":"bad","config":"e30="}`} {
			require.NoError(t, os.WriteFile(bad, []byte(data), 0o600))
			images, err := s.List()
			require.Error(t, err)
			assert.ErrorContains(t, err, "bad.json")
			assert.Len(t, images, 1, "the others are listed")
			_, err = s.Remove(t.Context(), name)
			require.Error(t, err, "it might need the layers")
			problems, err := s.Check(t.Context())
			require.NoError(t, err)
			require.NotEmpty(t, problems)
			assert.True(t, problems[0].Severe)
			require.NoError(t, s.save(imported.Image))
		}
		require.NoError(t, os.Remove(bad))
	})
	t.Run("a record of another name", func(t *testing.T) {
		data, err := os.ReadFile(s.path(recordsDir, recordFile(name)))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(s.path(recordsDir, "copy.json"), data, 0o600))
		_, err = s.Get("copy")
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		require.NoError(t, os.Remove(s.path(recordsDir, "copy.json")))
	})
	t.Run("a layer is gone", func(t *testing.T) {
		require.NoError(t, s.driver.Remove(imported.Image.Top()))
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Len(t, problems, 1)
		assert.True(t, problems[0].Severe)
		assert.Contains(t, problems[0].What, name)
	})
}
