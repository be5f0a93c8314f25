package image

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func mustParse(t testing.TB, s string) Reference {
	t.Helper()
	ref, err := ParseReference(s)
	require.NoError(t, err)
	return ref
}

// requireSource opens an image and requires it to be img.
func requireSource(t *testing.T, ref string, opts OpenOptions, img v1.Image, name string) {
	t.Helper()
	src, err := Open(t.Context(), mustParse(t, ref), opts)
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	assert.Equal(t, name, src.Name)
	config, err := img.RawConfigFile()
	require.NoError(t, err)
	assert.Equal(t, string(config), string(src.config))
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Len(t, src.layers, len(layers))
	for i, layer := range layers {
		r, err := src.layers[i].open(t.Context())
		require.NoError(t, err)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		stored, err := layer.Compressed()
		require.NoError(t, err)
		want, err := io.ReadAll(stored)
		require.NoError(t, err)
		assert.Equal(t, digest.FromBytes(want), digest.FromBytes(got), "layer %d", i)
		assert.EqualValues(t, len(want), src.layers[i].size)
	}
}

func gzipped(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	_, err = zw.Write(data)
	require.NoError(t, err)
	require.NoError(t, zw.Close())
	require.NoError(t, os.WriteFile(path+".gz", buf.Bytes(), 0o644))
	return path + ".gz"
}

func TestOpen(t *testing.T) {
	img := makeImage(t, baseTar(t), upperTar(t))
	other := makeImage(t, upperTar(t))
	one := writeDockerArchive(t, map[string]v1.Image{"app:1": img})
	two := writeDockerArchive(t, map[string]v1.Image{"app:1": img, "other:2": other})
	dir := writeLayout(t, map[string]v1.Image{"v1": img})
	dirTwo := writeLayout(t, map[string]v1.Image{"v1": img, "v2": other})
	packed := tarDir(t, dir, nil)

	t.Run("docker archive", func(t *testing.T) {
		requireSource(t, "docker-archive:"+one, OpenOptions{}, img, "app:1")
		requireSource(t, one, OpenOptions{}, img, "app:1")
		requireSource(t, gzipped(t, one), OpenOptions{}, img, "app:1")
		requireSource(t, "docker-archive:"+two+":other:2", OpenOptions{}, other, "other:2")
	})
	t.Run("docker archive on standard input", func(t *testing.T) {
		for _, ref := range []string{"-", "docker-archive:-"} {
			f, err := os.Open(one)
			require.NoError(t, err)
			defer f.Close()
			requireSource(t, ref, OpenOptions{Stdin: io.MultiReader(f)}, img, "app:1")
		}
	})
	t.Run("OCI layout", func(t *testing.T) {
		requireSource(t, "oci:"+dir, OpenOptions{}, img, "layout:v1")
		requireSource(t, dir, OpenOptions{}, img, "layout:v1")
		requireSource(t, "oci:"+dirTwo+":v2", OpenOptions{}, other, "layout:v2")
	})
	t.Run("OCI archive", func(t *testing.T) {
		requireSource(t, "oci-archive:"+packed, OpenOptions{}, img, "packed:v1")
		requireSource(t, packed, OpenOptions{}, img, "packed:v1")
		requireSource(t, gzipped(t, packed), OpenOptions{}, img, "packed:v1")
	})
}

func TestOpenPlatforms(t *testing.T) {
	platforms := []string{"linux/amd64", "linux/arm64", "linux/arm/v7"}
	images := make(map[string]v1.Image)
	var index v1.ImageIndex = empty.Index
	for _, p := range platforms {
		platform, err := v1.ParsePlatform(p)
		require.NoError(t, err)
		img := makeImage(t, makeTar(t, entry{name: "platform", data: p}))
		config, err := img.ConfigFile()
		require.NoError(t, err)
		config = config.DeepCopy()
		config.Architecture, config.Variant = platform.Architecture, platform.Variant
		img, err = mutate.ConfigFile(img, config)
		require.NoError(t, err)
		images[p] = img
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	// An index in the index, as registries have it, and the manifests side by side, as docker buildx writes.
	nested := filepath.Join(t.TempDir(), "nested")
	path, err := layout.Write(nested, empty.Index)
	require.NoError(t, err)
	require.NoError(t, path.AppendIndex(index))
	flat := filepath.Join(t.TempDir(), "flat")
	_, err = layout.Write(flat, index)
	require.NoError(t, err)

	for _, dir := range []string{nested, flat} {
		for _, p := range platforms {
			platform, err := ParsePlatform(p)
			require.NoError(t, err)
			requireSource(t, "oci:"+dir, OpenOptions{Platform: platform}, images[p], filepath.Base(dir))
		}
		host, known := images[FormatPlatform(HostPlatform())]
		if known {
			requireSource(t, "oci:"+dir, OpenOptions{}, host, filepath.Base(dir))
		}
		_, err := Open(t.Context(), mustParse(t, "oci:"+dir), OpenOptions{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		assert.ErrorContains(t, err, "linux/arm/v7", "what there is")
	}

	t.Run("an image for another platform", func(t *testing.T) {
		one := writeDockerArchive(t, map[string]v1.Image{"app:1": images["linux/arm64"]})
		_, err := Open(t.Context(), mustParse(t, one), OpenOptions{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		requireSource(t, one, OpenOptions{}, images["linux/arm64"], "app:1")
	})
}

func TestOpenRootFS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "debian.tar")
	data := baseTar(t)
	require.NoError(t, os.WriteFile(path, data, 0o644))
	created := time.Unix(1700000000, 0)
	for _, ref := range []string{path, "rootfs:" + path, gzipped(t, path), "rootfs:" + gzipped(t, path)} {
		src, err := Open(t.Context(), mustParse(t, ref), OpenOptions{Created: &created})
		require.NoError(t, err)
		assert.Equal(t, "debian", src.Name)
		assert.Nil(t, src.config)
		config, err := src.describe([]digest.Digest{digest.FromBytes(data)})
		require.NoError(t, err)
		var parsed ocispec.Image
		require.NoError(t, json.Unmarshal(config, &parsed))
		assert.Equal(t, created.UTC(), *parsed.Created)
		assert.Equal(t, HostPlatform(), parsed.Platform)
		require.NoError(t, src.Close())
	}
}

// The first entry of a root filesystem's tar may be "./".
func TestGuessRootFS(t *testing.T) {
	for first, isImage := range map[string]bool{
		"bin/": false, "etc/": false, "blobs.txt": false, "VERSION": false,
		"blobs/": true, "oci-layout": true, "index.json": true, "manifest.json": true, "repositories": true,
		strings.Repeat("a", 64) + "/": true, strings.Repeat("0", 64) + ".json": true, "sha256:" + strings.Repeat("1", 64): true,
	} {
		data := makeTar(t, entry{name: "./"}, entry{name: first})
		in, err := openInput(Stdio, bytes.NewReader(data))
		require.NoError(t, err)
		got, err := in.holdsImage()
		require.NoError(t, err)
		assert.Equal(t, isImage, got, first)
		require.NoError(t, in.close())
	}
}

// Opening a faulty archive is an error of the right kind that names the fault.
func TestOpenBadArchives(t *testing.T) {
	img := makeImage(t, baseTar(t))
	dir := writeLayout(t, map[string]v1.Image{"v1": img})
	manifest, err := img.Digest()
	require.NoError(t, err)
	config, err := img.ConfigName()
	require.NoError(t, err)

	// alter packs the layout with one file changed.
	alter := func(file string, change func([]byte) []byte) string {
		return "oci-archive:" + tarDir(t, dir, func(name string, data []byte) []byte {
			if name == file {
				return change(data)
			}
			return data
		})
	}
	drop := func([]byte) []byte { return nil }
	replace := func(old, with string) func([]byte) []byte {
		return func(data []byte) []byte {
			require.Contains(t, string(data), old)
			return bytes.ReplaceAll(data, []byte(old), []byte(with))
		}
	}
	archive := func(entries ...entry) string {
		path := filepath.Join(t.TempDir(), "a.tar")
		require.NoError(t, os.WriteFile(path, makeTar(t, entries...), 0o644))
		return "docker-archive:" + path
	}
	manifestFile, configFile := "blobs/sha256/"+manifest.Hex, "blobs/sha256/"+config.Hex
	huge := strings.Repeat(" ", maxManifestSize+1)

	for _, test := range []struct {
		name, ref string
		is        error
		says      string
	}{
		{"no oci-layout", alter("oci-layout", drop), ErrMalformed, "oci-layout"},
		{"a later layout", alter("oci-layout", replace("1.0.0", "2.0.0")), errdefs.ErrNotImplemented, "2.0.0"},
		{"no index", alter("index.json", drop), os.ErrNotExist, "index.json"},
		{"index is no JSON", alter("index.json", func([]byte) []byte { return []byte("{") }), ErrMalformed, "index.json"},
		{"index too large", alter("index.json", func(d []byte) []byte { return append([]byte(huge), d...) }), errTooLarge, "index.json"},
		{"no manifest", alter(manifestFile, drop), ErrMalformed, manifest.Hex},
		{"manifest altered", alter(manifestFile, replace("sha256", "sha257")), errdefs.ErrDataLoss, "manifest has digest"},
		{"manifest longer", alter(manifestFile, func(d []byte) []byte { return append(d, ' ') }), errdefs.ErrDataLoss, "manifest has more than"},
		{"manifest shorter", alter(manifestFile, func(d []byte) []byte { return d[:len(d)-1] }), errdefs.ErrDataLoss, "manifest ends after"},
		{"config altered", alter(configFile, replace("PATH=/bin", "PATH=/tmp")), errdefs.ErrDataLoss, "config has digest"},
		{"no config", alter(configFile, drop), ErrMalformed, config.Hex},
		{"digest that leads out", alter("index.json", replace(manifest.Hex, strings.Repeat("../", 21)+"a")), ErrMalformed, "digest"},
		{"no such image", "oci:" + dir + ":v9", errdefs.ErrNotFound, "v1"},
		{"no manifest.json", archive(entry{name: "x"}), ErrMalformed, "manifest.json"},
		{"no images", archive(entry{name: "manifest.json", data: "[]"}), ErrMalformed, "no images"},
		{"null", archive(entry{name: "manifest.json", data: "null"}), ErrMalformed, "no images"},
		{"layer that leads out", archive(entry{name: "manifest.json", data: `[{"Config":"c","Layers":["../../etc/passwd"]}]`}), ErrMalformed, "etc/passwd"},
		{"config that leads out", archive(entry{name: "manifest.json", data: `[{"Config":"/etc/passwd"}]`}), ErrMalformed, "etc/passwd"},
		{"config is no config", archive(entry{name: "manifest.json", data: `[{"Config":"c"}]`}, entry{name: "c", data: "[]"}), ErrMalformed, "config"},
		{"layers missing", archive(entry{name: "manifest.json", data: `[{"Config":"c"}]`},
			entry{name: "c", data: `{"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`}), ErrMalformed, "0 layers and the config 1"},
		{"unknown rootfs", archive(entry{name: "manifest.json", data: `[{"Config":"c"}]`}, entry{name: "c", data: `{"rootfs":{"type":"layers+base"}}`}), ErrMalformed, "layers+base"},
		{"for Windows", archive(entry{name: "manifest.json", data: `[{"Config":"c"}]`}, entry{name: "c", data: `{"os":"windows"}`}), errdefs.ErrNotImplemented, "Windows"},
		{"which of two", "docker-archive:" + writeDockerArchive(t, map[string]v1.Image{"a:1": img, "b:1": makeImage(t, upperTar(t))}), errdefs.ErrInvalidArgument, "a:1"},
		{"none of two", "docker-archive:" + writeDockerArchive(t, map[string]v1.Image{"a:1": img, "b:1": makeImage(t, upperTar(t))}) + ":c:1", errdefs.ErrNotFound, "c:1"},
		{"link in a circle", archive(
			entry{name: "manifest.json", change: func(h *tarHeader) { h.Typeflag, h.Linkname = '2', "m" }},
			entry{name: "m", change: func(h *tarHeader) { h.Typeflag, h.Linkname = '2', "manifest.json" }}), os.ErrInvalid, "links"},
	} {
		t.Run(test.name, func(t *testing.T) {
			src, err := Open(t.Context(), mustParse(t, test.ref), OpenOptions{})
			if err == nil {
				require.NoError(t, src.Close())
			}
			require.ErrorIs(t, err, test.is)
			assert.ErrorContains(t, err, test.says)
		})
	}
}

func TestOpenDirectoryOfLinks(t *testing.T) {
	dir := writeLayout(t, map[string]v1.Image{"v1": makeImage(t, baseTar(t))})
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("{}"), 0o644))
	require.NoError(t, os.Remove(filepath.Join(dir, "index.json")))
	require.NoError(t, os.Symlink(secret, filepath.Join(dir, "index.json")))
	_, err := Open(t.Context(), mustParse(t, "oci:"+dir), OpenOptions{})
	require.Error(t, err)
	assert.ErrorContains(t, err, "escapes")
}

func TestIndexTarBounds(t *testing.T) {
	entries := make([]entry, maxArchiveEntries+1)
	for i := range entries {
		entries[i] = entry{name: "x", change: func(h *tarHeader) { h.Format, h.PAXRecords, h.ModTime = 0, nil, time.Unix(0, 0) }}
	}
	data := makeTar(t, entries...)
	_, err := indexTar(bytes.NewReader(data), bytes.NewReader(data), func() error { return nil })
	require.ErrorIs(t, err, errTooLarge)
}

func TestVerifier(t *testing.T) {
	data := []byte("some bytes")
	want := digest.FromBytes(data)
	read := func(want digest.Digest, size int64) error {
		v := newVerifier(iotestOneByte{bytes.NewReader(data)}, "it", want, size)
		_, err := io.ReadAll(v)
		return err
	}
	require.NoError(t, read(want, int64(len(data))))
	require.NoError(t, read("", -1))
	require.NoError(t, read(want, -1))
	require.ErrorIs(t, read(digest.FromString("x"), -1), errdefs.ErrDataLoss)
	require.ErrorIs(t, read(want, 3), errdefs.ErrDataLoss)
	require.ErrorIs(t, read(want, 300), errdefs.ErrDataLoss)
	require.ErrorIs(t, read(want, 300), io.ErrUnexpectedEOF)
}

type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func FuzzOpenArchive(f *testing.F) {
	img := makeImage(f, make([]byte, 1024)) // small, since the fuzzer's minimizing of large inputs takes most of the time
	for _, path := range []string{
		writeDockerArchive(f, map[string]v1.Image{"a:1": img}),
		tarDir(f, writeLayout(f, map[string]v1.Image{"v1": img}), nil),
	} {
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		archive, err := indexTar(bytes.NewReader(data), bytes.NewReader(data), func() error { return nil })
		if err != nil {
			return
		}
		docker, oci := &Source{}, &Source{}
		_ = docker.fromDockerArchive(archive, Reference{}, OpenOptions{})
		_ = oci.fromLayout(t.Context(), archive, Reference{}, OpenOptions{})
		for _, layer := range append(docker.layers, oci.layers...) {
			r, err := layer.open(t.Context())
			if err == nil {
				_, err = io.Copy(io.Discard, newVerifier(r, "layer", layer.digest, layer.size))
				err = errors.Join(err, r.Close())
			}
			_ = err // any error will do
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"name":"a","imported":"2024-01-01T00:00:00Z","config":"e30="}`))
	f.Add([]byte(`{"version":1,"name":"a","config":"eyJyb290ZnMiOnsidHlwZSI6ImxheWVycyJ9fQ=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		image, err := decodeRecord(data)
		if err == nil {
			require.Len(t, image.Layers(), len(image.DiffIDs()))
		}
	})
}
