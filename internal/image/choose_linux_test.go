package image

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// offered finds the references that an error advises.
var offered = regexp.MustCompile(`(?:oci|oci-archive|docker-archive|rootfs):[^ ,]+`)

// followAdvice opens an image with an error, and then every image that the error offers.
func followAdvice(t *testing.T, ref string, opts OpenOptions, is error, want int) (names []string) {
	t.Helper()
	_, err := Open(t.Context(), mustParse(t, ref), opts)
	require.ErrorIs(t, err, is)
	advice := offered.FindAllString(strings.TrimPrefix(err.Error(), "open image "+ref+":"), -1)
	require.Len(t, advice, want, err.Error())
	for _, ref := range advice {
		src, err := Open(t.Context(), mustParse(t, strings.TrimSuffix(ref, ":")), opts)
		require.NoError(t, err, ref)
		names = append(names, src.Name)
		require.NoError(t, src.Close())
	}
	return names
}

func TestChooseAsAdvised(t *testing.T) {
	first, second := makeImage(t, baseTar(t)), makeImage(t, baseTar(t), upperTar(t))
	layout := writeLayout(t, map[string]v1.Image{"v1": first, "v2": second})
	archive := writeDockerArchive(t, map[string]v1.Image{"app:1": first, "app:2": second})
	untagged := filepath.Join("testdata", "two-untagged.tar")
	colon := filepath.Join(t.TempDir(), "with:colon.tar")
	text, err := os.ReadFile(untagged)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(colon, text, 0o600))
	for _, ref := range []string{"oci:" + layout, "docker-archive:" + archive, untagged, "docker-archive:" + untagged, colon} {
		t.Run(ref, func(t *testing.T) { followAdvice(t, ref, OpenOptions{}, errdefs.ErrInvalidArgument, 2) })
	}
	for _, ref := range []string{"oci:" + layout + ":v3", "docker-archive:" + archive + ":app:3", "docker-archive:" + untagged + ":@2"} {
		t.Run(ref, func(t *testing.T) { followAdvice(t, ref, OpenOptions{}, errdefs.ErrNotFound, 2) })
	}

	var sizes []int
	for _, image := range []string{"@0", "@1", "sha256:7c489e2df5a700626f3d157aae9efa3c9148b832bf3a246e2c6023c4363b39a8"} {
		src, err := Open(t.Context(), mustParse(t, "docker-archive:"+untagged+":"+image), OpenOptions{})
		require.NoError(t, err)
		sizes = append(sizes, len(src.layers))
		require.NoError(t, src.Close())
	}
	assert.Equal(t, []int{1, 2, 1}, sizes)
}

func TestMatches(t *testing.T) {
	c := candidate{names: []string{"team/app:1", "1"}, digest: "sha256:abc"}
	for what, want := range map[string]bool{
		"team/app:1": true, "docker.io/team/app:1": true, "1": true, "sha256:abc": true, "@3": true,
		"team/app": false, "app:1": false, "@4": false, "sha256:abd": false, "@": false,
	} {
		assert.Equal(t, want, c.matches(3, what), what)
	}
	assert.False(t, candidate{}.matches(0, ""), "no digest is not the same as that digest")
}

// TestArchiveOffersAllPlatforms opens an archive of docker save of Docker 29 of an image for two platforms: its
// index.json has both, its manifest.json one.
func TestArchiveOffersAllPlatforms(t *testing.T) {
	archive := filepath.Join("testdata", "docker29-save-multi.tar")
	for _, ref := range []string{archive, "docker-archive:" + archive, "oci-archive:" + archive} {
		for _, arch := range []string{"amd64", "arm64"} {
			src, err := Open(t.Context(), mustParse(t, ref), OpenOptions{Platform: ocispec.Platform{OS: "linux", Architecture: arch}})
			require.NoError(t, err, "%s of %s", arch, ref)
			config, err := parseConfig(src.config)
			require.NoError(t, err)
			assert.Equal(t, arch, config.Architecture)
			assert.Equal(t, "multi:1", src.Name)
			require.NoError(t, src.Close())
		}
		_, err := Open(t.Context(), mustParse(t, ref), OpenOptions{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
}

// TestFirstEntryIsAnything opens archives whose first entry is of no image.
func TestFirstEntryIsAnything(t *testing.T) {
	dir := writeLayout(t, map[string]v1.Image{"v1": makeImage(t, baseTar(t))})
	var late []entry
	for range 200 { // beyond the part of a stream that is looked into
		late = append(late, entry{name: "padding", data: strings.Repeat("x", 1000)})
	}
	padding, err := os.ReadFile(tarDir(t, dir, nil))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "late.tar")
	front := makeTar(t, late...)
	front = front[:len(front)-9*512] // without the end of the tar
	require.NoError(t, os.WriteFile(path, append(front, padding...), 0o600))
	for _, ref := range []string{filepath.Join("testdata", "appledouble-first.tar"), filepath.Join("testdata", "ingest-first.tar"), path} {
		src, err := Open(t.Context(), mustParse(t, ref), OpenOptions{})
		require.NoError(t, err, ref)
		assert.Equal(t, OCIArchive, src.Kind, ref)
		require.NoError(t, src.Close())
	}

	s := newTestStore(t)
	s.requireUnchanged(t, func() {
		_, err := s.importRef(t, gzipped(t, path), ImportOptions{})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, "oci-archive:")
	})
}

// TestExportAtTheSameTime exports an image to a layout while another process adds one: both are in the index.
func TestExportAtTheSameTime(t *testing.T) {
	s := newTestStore(t)
	s.makeLayer(t, "one", "", "file", "1")
	s.makeLayer(t, "two", "", "file", "2")
	path := filepath.Join(t.TempDir(), "layout")
	first := s.mustExport(t, "one", "oci:"+path, ExportOptions{Name: "one:1"})
	other := &layoutWriter{dir: path}
	done := make(chan error, 1)
	require.NoError(t, other.locked(t.Context(), func() error {
		index, err := other.readIndex()
		require.NoError(t, err)
		go func() {
			_, err := s.Export(t.Context(), "two", Reference{Transport: OCILayout, Path: path}, ExportOptions{Name: "two:1"})
			done <- err
		}()
		select {
		case err := <-done:
			t.Errorf("it did not wait: %v", err)
			done <- err
		case <-time.After(500 * time.Millisecond):
		}
		index.Manifests[0].Annotations["added"] = "meanwhile"
		return other.writeJSON(ocispec.ImageIndexFile, index)
	}))
	require.NoError(t, testfs.Receive(t, done))
	index, err := other.readIndex()
	require.NoError(t, err)
	require.Len(t, index.Manifests, 2)
	assert.Equal(t, first.Manifest, index.Manifests[0].Digest)
	assert.Equal(t, "meanwhile", index.Manifests[0].Annotations["added"])
}

// TestExportAfterCrash: a process was killed while it wrote to a new layout. The next export succeeds, and removes its files. It does
// not remove those of a process that is at work.
func TestExportAfterCrash(t *testing.T) {
	s := newTestStore(t)
	s.makeLayer(t, "one", "", "file", "1")
	path := filepath.Join(t.TempDir(), "layout")
	killed, err := newLayoutWriter(t.Context(), path)
	require.NoError(t, err)
	begun, err := killed.newBlob(t.Context(), false)
	require.NoError(t, err)
	blob, ok := begun.(fileUpload)
	require.True(t, ok)
	s.mustExport(t, "one", "oci:"+path, ExportOptions{Name: "one:1"})
	require.FileExists(t, blob.Name())

	require.NoError(t, killed.lock.Close())
	require.NoError(t, blob.Close())
	s.mustExport(t, "one", "oci:"+path, ExportOptions{Name: "one:1"})
	require.NoFileExists(t, blob.Name())

	early := filepath.Join(t.TempDir(), "layout")
	require.NoError(t, os.Mkdir(early, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(early, temporaryPrefix+"1"), nil, 0o600))
	s.mustExport(t, "one", "oci:"+early, ExportOptions{Name: "one:1"})
}

// TestExportBesideOthers exports images of equal tags into one layout: none pushes another out, and the same name does.
func TestExportBesideOthers(t *testing.T) {
	s := newTestStore(t)
	s.makeLayer(t, "one", "", "file", "1")
	s.makeLayer(t, "two", "", "file", "2")
	dir := filepath.Join(t.TempDir(), "layout")
	export := func(layer, name string) *Exported {
		return s.mustExport(t, layer, "oci:"+dir, ExportOptions{Name: name})
	}
	one := export("one", "app:1")
	assert.Equal(t, "docker.io/library/app:1", one.Name)
	assert.Empty(t, export("two", "reg.example/app:1").Replaced)
	assert.Empty(t, export("one", "app:1").Replaced, "the same image")
	untagged := export("two", "app@sha256:"+strings.Repeat("a", 64))
	assert.Empty(t, untagged.Name)
	assert.Empty(t, export("two", "app@sha256:"+strings.Repeat("a", 64)).Replaced)

	index, err := (&layoutWriter{dir: dir}).readIndex()
	require.NoError(t, err)
	var annotations []map[string]string
	for _, d := range index.Manifests {
		annotations = append(annotations, d.Annotations)
	}
	assert.ElementsMatch(t, []map[string]string{
		{"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "docker.io/library/app:1"},
		{"org.opencontainers.image.ref.name": "1", "io.containerd.image.name": "reg.example/app:1"},
		nil,
	}, annotations)
	names := followAdvice(t, "oci:"+dir, OpenOptions{}, errdefs.ErrInvalidArgument, 3)
	assert.Contains(t, names, "app:1")
	assert.Contains(t, names, "reg.example/app:1")

	replaced := export("two", "docker.io/library/app:1")
	assert.Equal(t, one.Manifest, replaced.Replaced[0])
}

// TestExportNames reads back the image's name in a docker archive.
func TestExportNames(t *testing.T) {
	s := newTestStore(t)
	s.makeLayer(t, "layer", "", "file", "1")
	for name, want := range map[string]string{"app": "app:latest", "docker.io/library/app:1": "app:1", "reg.example:5000/a/b:2": "reg.example:5000/a/b:2", "Web": ""} {
		path := filepath.Join(t.TempDir(), "image.tar")
		s.mustExport(t, "layer", "docker-archive:"+path, ExportOptions{Name: name})
		in, err := openInput(path, nil)
		require.NoError(t, err)
		files, err := in.index(t.Context())
		require.NoError(t, err)
		var manifest []dockerManifestEntry
		require.NoError(t, readJSON(files, dockerManifest, &manifest))
		require.Len(t, manifest, 1)
		if want == "" {
			assert.Empty(t, manifest[0].RepoTags)
			assert.False(t, has(files, dockerRepositories))
		} else {
			assert.Equal(t, []string{want}, manifest[0].RepoTags)
			var repositories map[string]map[string]string
			require.NoError(t, readJSON(files, dockerRepositories, &repositories))
			at := strings.LastIndexByte(want, ':')
			assert.Len(t, repositories[want[:at]][want[at+1:]], 64)
		}
		require.NoError(t, files.close())
		require.NoError(t, in.close())
	}
}

// listedAs makes a layout with the entries, of which each has a digest and annotations.
func listedAs(t *testing.T, dir string, entries ...ocispec.Descriptor) {
	t.Helper()
	index := newIndex()
	index.Manifests = entries
	require.NoError(t, (&layoutWriter{dir: dir}).writeJSON(ocispec.ImageIndexFile, index))
}

// named is an entry that other tools have written: with containerd's name, or a tag, or both.
func named(d ocispec.Descriptor, name, tag string) ocispec.Descriptor {
	d.Annotations = map[string]string{}
	if name != "" {
		d.Annotations[annotationImageName] = name
	}
	if tag != "" {
		d.Annotations[ocispec.AnnotationRefName] = tag
	}
	return d
}

// TestSeveralNames opens layouts that list one image more than once: it is one image.
func TestSeveralNames(t *testing.T) {
	dir := writeLayout(t, map[string]v1.Image{"v1": makeImage(t, baseTar(t))})
	index, err := (&layoutWriter{dir: dir}).readIndex()
	require.NoError(t, err)
	d := index.Manifests[0]
	one, two := named(d, "reg.example/app:1", "1"), named(d, "reg.example/app:2", "2")
	here, elsewhere := HostPlatform(), ocispec.Platform{OS: "linux", Architecture: "s390x"}
	other := one
	other.Digest = digest.FromString("another")
	for name, test := range map[string]struct {
		entries []ocispec.Descriptor
		image   string
		want    string // name
	}{
		"two names":         {entries: []ocispec.Descriptor{one, two}, want: "reg.example/app:1"},
		"the other name":    {entries: []ocispec.Descriptor{one, two}, image: "reg.example/app:2", want: "reg.example/app:2"},
		"the other tag":     {entries: []ocispec.Descriptor{one, two}, image: "2", want: "reg.example/app:2"},
		"the digest":        {entries: []ocispec.Descriptor{one, two}, image: string(d.Digest), want: "reg.example/app:1"},
		"without and with":  {entries: []ocispec.Descriptor{named(d, "", ""), two}, want: "reg.example/app:2"},
		"names, platforms":  {entries: []ocispec.Descriptor{on(one, here), on(other, elsewhere), on(two, here), on(other, elsewhere)}, want: "reg.example/app:1"},
		"tagged by another": {entries: []ocispec.Descriptor{other, named(d, "reg.example/app:1", "new")}, image: "new", want: "reg.example/app:new"},
	} {
		t.Run(name, func(t *testing.T) {
			listedAs(t, dir, test.entries...)
			src, err := Open(t.Context(), Reference{Transport: OCILayout, Path: dir, Image: test.image}, OpenOptions{})
			require.NoError(t, err)
			assert.Equal(t, test.want, src.Name)
			require.NoError(t, src.Close())
		})
	}
}

func on(d ocispec.Descriptor, p ocispec.Platform) ocispec.Descriptor {
	d.Platform = &p
	return d
}

// TestExportBesideRetagged exports into a layout where a tool has given a copy of the entry another tag, and left the rest
// as it was: the copy stays.
func TestExportBesideRetagged(t *testing.T) {
	s := newTestStore(t)
	s.makeLayer(t, "layer", "", "file", "1")
	dir := filepath.Join(t.TempDir(), "layout")
	s.mustExport(t, "layer", "oci:"+dir, ExportOptions{Name: "reg.example/app:1"})
	index, err := (&layoutWriter{dir: dir}).readIndex()
	require.NoError(t, err)
	d := index.Manifests[0]
	d.Digest = digest.FromString("changed")
	listedAs(t, dir, index.Manifests[0], named(d, "reg.example/app:1", "changed"))

	exported := s.mustExport(t, "layer", "oci:"+dir, ExportOptions{Name: "reg.example/app:1"})
	assert.Empty(t, exported.Replaced)
	index, err = (&layoutWriter{dir: dir}).readIndex()
	require.NoError(t, err)
	assert.Len(t, index.Manifests, 2)
}

// TestDockerArchiveOfAnotherPlatform opens archives whose manifest.json lists an image for another platform, as nerdctl
// saves an image with all platforms. Their index.json lists one for this machine too.
func TestDockerArchiveOfAnotherPlatform(t *testing.T) {
	here, elsewhere := makeImage(t, baseTar(t)), makeImage(t, upperTar(t))
	config, err := elsewhere.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.Architecture = "s390x"
	elsewhere, err = mutate.ConfigFile(elsewhere, config)
	require.NoError(t, err)

	dir := writeLayout(t, map[string]v1.Image{"1": here})
	path, err := layout.FromPath(dir)
	require.NoError(t, err)
	require.NoError(t, path.AppendImage(elsewhere, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: "1"})))
	index, err := (&layoutWriter{dir: dir}).readIndex()
	require.NoError(t, err)
	listedAs(t, dir, on(index.Manifests[0], HostPlatform()), on(index.Manifests[1], ocispec.Platform{OS: "linux", Architecture: "s390x"}))
	layers, err := elsewhere.Layers()
	require.NoError(t, err)
	blob, err := layers[0].Digest()
	require.NoError(t, err)
	entry := dockerManifestEntry{Config: blobPath(imageID(t, elsewhere)), Layers: []string{blobPath(digest.Digest(blob.String()))}}
	require.NoError(t, (&layoutWriter{dir: dir}).writeJSON(dockerManifest, []dockerManifestEntry{entry}))

	archive := tarDir(t, dir, nil)
	for architecture, want := range map[string]v1.Image{"": here, "s390x": elsewhere} {
		src, err := Open(t.Context(), mustParse(t, "docker-archive:"+archive), OpenOptions{Platform: ocispec.Platform{OS: "linux", Architecture: architecture}})
		require.NoError(t, err)
		assert.Equal(t, imageID(t, want), digest.FromBytes(src.config))
		require.NoError(t, src.Close())
	}
}
