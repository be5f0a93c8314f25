package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// imageTime is the time of the images.
var imageTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// layout makes an OCI layout in a directory.
type layout struct {
	t   testing.TB
	dir string
}

func newLayout(t testing.TB) layout {
	l := layout{t, tempDir(t)}
	require.NoError(t, os.MkdirAll(filepath.Join(l.dir, "blobs", "sha256"), 0o755))
	l.file(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return l
}

func (l layout) file(name string, data []byte) {
	require.NoError(l.t, os.WriteFile(filepath.Join(l.dir, name), data, 0o644))
}

func (l layout) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	l.file(filepath.Join("blobs", "sha256", d.Encoded()), data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (l layout) json(mediaType string, value any) ocispec.Descriptor {
	data, err := json.Marshal(value)
	require.NoError(l.t, err)
	return l.blob(mediaType, data)
}

// made is a layer of an image as it is stored.
type made struct {
	mediaType string
	data      []byte
	diffID    digest.Digest
}

// image adds an image for linux and an architecture.
func (l layout) image(architecture string, layers ...made) ocispec.Descriptor {
	config := ocispec.Image{
		Created:  &imageTime,
		Platform: ocispec.Platform{OS: "linux", Architecture: architecture},
		Config:   ocispec.ImageConfig{Cmd: []string{"/file"}, Labels: map[string]string{"made": "for round trips"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, m := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, m.diffID)
		config.History = append(config.History, ocispec.History{Created: &imageTime, CreatedBy: "layout"})
		manifest.Layers = append(manifest.Layers, l.blob(m.mediaType, m.data))
	}
	manifest.Config = l.json(ocispec.MediaTypeImageConfig, config)
	d := l.json(manifest.MediaType, manifest)
	d.Platform = &config.Platform
	return d
}

// attested is an index of images, each with an attestation, as BuildKit writes them.
func (l layout) attested(images ...ocispec.Descriptor) ocispec.Descriptor {
	unknown := ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: images}
	for _, image := range images {
		statement := l.json("application/vnd.in-toto+json", map[string]any{
			"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://slsa.dev/provenance/v0.2",
			"subject": []any{map[string]any{"digest": map[string]string{"sha256": image.Digest.Encoded()}}},
		})
		statement.Annotations = map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"}
		attestation := l.json(ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Versioned: index.Versioned, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{statement},
			Config: l.json(ocispec.MediaTypeImageConfig, ocispec.Image{
				Platform: unknown, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement.Digest}},
			}),
		})
		attestation.Platform = &unknown
		attestation.Annotations = map[string]string{
			"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.Digest.String(),
		}
		index.Manifests = append(index.Manifests, attestation)
	}
	return l.json(index.MediaType, index)
}

// list writes the list of images: one, under the given names, as containerd and BuildKit call it, or under none.
func (l layout) list(image ocispec.Descriptor, names ...string) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, name := range names {
		image.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: tagOf(name)}
		index.Manifests = append(index.Manifests, image)
	}
	if len(names) == 0 {
		index.Manifests = append(index.Manifests, image)
	}
	data, err := json.Marshal(index)
	require.NoError(l.t, err)
	l.file(ocispec.ImageIndexFile, data)
}

// baseLayer and changeLayer are a small tree, and changes to it.
func baseLayer(t testing.TB) []byte {
	return tarOf(t,
		harness.File{Path: "file", Data: "first\n", Mode: 0o755},
		harness.File{Path: "dir/"}, harness.File{Path: "dir/gone", Data: "gone\n"}, harness.File{Path: "dir/owned", Data: "of user\n", UID: 1000},
		harness.File{Path: "dir/hard", Hard: "dir/owned"}, harness.File{Path: "link", Link: "dir/owned"},
	)
}

func changeLayer(t testing.TB) []byte {
	return tarOf(t, harness.File{Path: "dir/"}, harness.File{Path: "dir/.wh.gone"}, harness.File{Path: "file", Data: "second\n", Mode: 0o4755})
}

func tarOf(t testing.TB, files ...harness.File) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(t, harness.WriteFiles(w, files))
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func gzipped(t testing.TB, tar []byte) made {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(tar)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return made{ocispec.MediaTypeImageLayerGzip, buf.Bytes(), digest.FromBytes(tar)}
}

func eStargz(t testing.TB, tar []byte) made {
	return chunked(t, tar, ocispec.MediaTypeImageLayerGzip)
}

func zstdChunked(t testing.TB, tar []byte) made {
	compressor := &zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault}
	return chunked(t, tar, ocispec.MediaTypeImageLayerZstd, estargz.WithCompression(&zstdCompression{compressor, &zstdchunked.Decompressor{}}))
}

type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// chunked compresses a layer so that its files can be fetched one by one, which makes it another tar.
func chunked(t testing.TB, tar []byte, mediaType string, opts ...estargz.Option) made {
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), opts...)
	require.NoError(t, err)
	defer blob.Close()
	data, err := io.ReadAll(blob)
	require.NoError(t, err)
	return made{mediaType, data, blob.DiffID()}
}
