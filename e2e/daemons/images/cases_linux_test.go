package images

import (
	"archive/tar"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// format is how an image is kept, by the name that Cowshed and skopeo have for it.
type format string

const (
	ociDir        format = "oci"
	ociArchive    format = "oci-archive"
	dockerArchive format = "docker-archive"
	registry      format = "docker"
)

// formats are in the order in which images go round.
var formats = []format{ociArchive, dockerArchive, ociDir, registry}

// imageCase is an image that goes round.
type imageCase struct {
	name string
	tags []string // of it; none: it is known by its digest
	make func(t testing.TB, l layout) ocispec.Descriptor
	// export are flags of cowshed export, whose output the tools then read; nil: they read the original image.
	export []string
	// pushed says that it goes through a registry in short runs too, where others go if the tool reads nothing else.
	pushed bool
}

// cases are images, each with a feature that some tool or other stumbles on. Cowshed's export makes compression,
// empty and duplicate layers and missing names. Features that Cowshed imports but does not write itself are made as
// by other tools.
var cases = []imageCase{
	{name: "gzip", tags: []string{"1.2"}, make: plain, export: []string{"--compress=gzip"}, pushed: true},
	{name: "zstd", tags: []string{"1.2"}, make: plain, export: []string{"--compress=zstd"}},
	{name: "uncompressed", tags: []string{"1.2"}, make: plain, export: []string{"--compress=none"}},
	{name: "odd-layers", tags: []string{"1.2"}, make: oddLayers, export: []string{}},
	{name: "untagged", make: plain, export: []string{}},
	{name: "tags", tags: []string{"1.2", "latest"}, make: plain},
	{name: "estargz", tags: []string{"1.2"}, make: compressed(eStargz)},
	{name: "zstd-chunked", tags: []string{"1.2"}, make: compressed(zstdChunked)},
	{name: "attested", tags: []string{"1.2"}, make: attested(runtime.GOARCH)},
	{name: "platforms", tags: []string{"1.2"}, make: attested(otherArchitecture(), runtime.GOARCH), pushed: true},
}

func plain(t testing.TB, l layout) ocispec.Descriptor { return compressed(gzipped)(t, l) }

func compressed(compress func(testing.TB, []byte) made) func(testing.TB, layout) ocispec.Descriptor {
	return func(t testing.TB, l layout) ocispec.Descriptor {
		return l.image(runtime.GOARCH, compress(t, baseLayer(t)), compress(t, changeLayer(t)))
	}
}

// oddLayers has layers without entries, and one layer twice.
func oddLayers(t testing.TB, l layout) ocispec.Descriptor {
	empty, change := gzipped(t, make([]byte, 1024)), gzipped(t, changeLayer(t))
	return l.image(runtime.GOARCH, gzipped(t, baseLayer(t)), empty, change, change, empty)
}

func attested(architectures ...string) func(testing.TB, layout) ocispec.Descriptor {
	return func(t testing.TB, l layout) ocispec.Descriptor {
		var images []ocispec.Descriptor
		for _, architecture := range architectures {
			images = append(images, l.image(architecture, gzipped(t, baseLayer(t)), gzipped(t, changeLayer(t))))
		}
		return l.attested(images...)
	}
}

// otherArchitecture is an architecture that this machine does not have.
func otherArchitecture() string {
	if runtime.GOARCH == "s390x" {
		return "amd64"
	}
	return "s390x"
}

// place is an image in a format.
type place struct {
	from   string // path, or reference in the registry
	names  []string
	target digest.Digest // of the manifest, or of the index of platforms
}

// ready is an image of a case in all formats that there are of it, and as Cowshed knows it.
type ready struct {
	imageCase
	image
	otherID digest.Digest // for the other platform; "": there is none
	places  map[format]place
}

// prepare makes the image, has Cowshed import it, and writes it in all formats.
func (c imageCase) prepare(t testing.TB, s store, registryAddress string) ready {
	l := newLayout(t)
	made := c.make(t, l)
	var names []string
	for _, tag := range c.tags {
		names = append(names, "example.com/team/"+c.name+":"+tag)
	}
	l.list(made, names...)
	repository := registryAddress + "/team/" + c.name
	pushed := l.push(repository, c.tags)

	r := ready{imageCase: c, places: map[format]place{}}
	if c.export == nil {
		archive := filepath.Join(tempDir(t), "image.tar")
		l.archive(archive)
		r.places[ociDir] = place{l.dir, names, made.Digest}
		r.places[ociArchive] = place{archive, names, made.Digest}
		r.places[registry] = place{pushed[0], pushed, made.Digest}
	}
	from := "oci:" + l.dir
	if len(names) == 0 {
		from = "docker://" + pushed[0]
	}
	var err error
	r.image, err = s.load(from)
	require.NoError(t, err)
	if c.name == "platforms" {
		other, err := s.load(from, "--platform=linux/"+otherArchitecture(), "--name=other")
		require.NoError(t, err)
		r.otherID = other.ID
	}
	if c.export != nil {
		for _, f := range formats {
			r.places[f] = s.exportTo(t, r, f, repository+"-exported:1.2")
		}
	}
	return r
}

// exportTo has Cowshed write the image.
func (s store) exportTo(t testing.TB, r ready, f format, reference string) place {
	t.Helper()
	p := place{from: filepath.Join(tempDir(t), "image")}
	to := string(f) + ":" + p.from
	if f == registry {
		p.from, to = reference, "docker://"+reference
	}
	e, err := s.save(r.Name, to, r.export...)
	require.NoError(t, err)
	p.target = e.Manifest
	if e.Name != "" {
		p.names = []string{e.Name}
	}
	return p
}

// push puts the image of the layout into a registry without TLS and returns its names there.
func (l layout) push(repository string, tags []string) (names []string) {
	index, err := ggcr.ImageIndexFromPath(l.dir)
	require.NoError(l.t, err)
	manifest, err := index.IndexManifest()
	require.NoError(l.t, err)
	image := manifest.Manifests[0]
	for _, tag := range tags {
		names = append(names, repository+":"+tag)
	}
	if len(names) == 0 {
		names = []string{repository + "@" + image.Digest.String()}
	}
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	opts := []remote.Option{remote.WithContext(l.t.Context()), remote.WithTransport(transport)}
	for _, n := range names {
		ref, err := name.ParseReference(n, name.Insecure)
		require.NoError(l.t, err)
		if image.MediaType.IsIndex() {
			inner, err := index.ImageIndex(image.Digest)
			require.NoError(l.t, err)
			require.NoError(l.t, remote.WriteIndex(ref, inner, opts...))
			continue
		}
		inner, err := index.Image(image.Digest)
		require.NoError(l.t, err)
		require.NoError(l.t, remote.Write(ref, inner, opts...))
	}
	return names
}

// archive writes the layout as a tar.
func (l layout) archive(file string) {
	f, err := os.Create(file)
	require.NoError(l.t, err)
	w := tar.NewWriter(f)
	require.NoError(l.t, w.AddFS(os.DirFS(l.dir)))
	require.NoError(l.t, w.Close())
	require.NoError(l.t, f.Close())
}
