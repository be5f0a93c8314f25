package image

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/google/go-containerregistry/pkg/name"
)

// entry is an entry of a test tar: a directory if its name ends in a slash, else a file.
type entry struct {
	name   string
	data   string
	change func(*tar.Header)
}

// makeTar makes a tar with headers of all kinds, which no other program would write just so.
func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i, e := range entries {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: e.name, Mode: 0o640, Size: int64(len(e.data)), Uid: 7, Gid: 8, Uname: "someone",
			ModTime: time.Unix(1700000000+int64(i), 0), Format: []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU}[i%3],
		}
		if h.Format == tar.FormatPAX {
			h.ModTime = h.ModTime.Add(123456789)
			h.PAXRecords = map[string]string{"COWSHED.test": "kept"}
		}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if e.change != nil {
			e.change(h)
		}
		require.NoError(t, tw.WriteHeader(h))
		_, err := io.WriteString(tw, e.data)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	buf.Write(make([]byte, 7*512)) // more padding than the format needs
	return buf.Bytes()
}

func baseTar(t testing.TB) []byte {
	return makeTar(t,
		entry{name: "etc/"}, entry{name: "etc/passwd", data: "root:x:0:0::/:/bin/sh\n"},
		entry{name: "usr/"}, entry{name: "usr/bin/"}, entry{name: "usr/bin/tool", data: strings.Repeat("tool ", 1000)},
		entry{name: "usr/bin/link", change: func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeLink, "usr/bin/tool" }},
		entry{name: "bin", change: func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeSymlink, "usr/bin" }},
		entry{name: "empty"},
	)
}

func upperTar(t testing.TB) []byte {
	return makeTar(t,
		entry{name: "etc/"}, entry{name: "etc/.wh.passwd"}, entry{name: "etc/hosts", data: "127.0.0.1 localhost\n"},
		entry{name: "new/"}, entry{name: "new/file", data: "new"},
	)
}

// makeImage makes an image with these layer tars and a config that has a member nobody knows.
func makeImage(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, data := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		require.NoError(t, err)
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "test"}})
		require.NoError(t, err)
	}
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", HostPlatform().Architecture
	config.Config.Env = []string{"PATH=/bin"}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	return img
}

func imageID(t testing.TB, img v1.Image) digest.Digest {
	t.Helper()
	h, err := img.ConfigName()
	require.NoError(t, err)
	return digest.Digest(h.String())
}

func diffIDs(t testing.TB, img v1.Image) []digest.Digest {
	t.Helper()
	config, err := img.ConfigFile()
	require.NoError(t, err)
	var ids []digest.Digest
	for _, h := range config.RootFS.DiffIDs {
		ids = append(ids, digest.Digest(h.String()))
	}
	return ids
}

// writeDockerArchive writes images as docker save does, by tag.
func writeDockerArchive(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	tagged := make(map[name.Tag]v1.Image)
	for tag, img := range images {
		parsed, err := name.NewTag(tag)
		require.NoError(t, err)
		tagged[parsed] = img
	}
	require.NoError(t, tarball.MultiWriteToFile(path, tagged))
	return path
}

// writeLayout writes images into an OCI layout, by tag.
func writeLayout(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	require.NoError(t, err)
	for tag, img := range images {
		require.NoError(t, path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})))
	}
	return dir
}

// tarDir packs a directory, and gives each file to change, which may return other bytes, or nil to leave
// the file out.
func tarDir(t testing.TB, dir string, change func(name string, data []byte) []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "packed.tar")
	f, err := os.Create(path)
	require.NoError(t, err)
	tw := tar.NewWriter(f)
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if change != nil {
			if data = change(rel, data); data == nil {
				return nil
			}
		}
		if err := tw.WriteHeader(&tar.Header{Name: rel, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	}))
	require.NoError(t, tw.Close())
	require.NoError(t, f.Close())
	return path
}

type tarHeader = tar.Header
