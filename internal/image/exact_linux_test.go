package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/go-archive"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// oddTars are layer tars that a tree does not tell all of.
func oddTars(t testing.TB) map[string][]byte {
	t.Helper()
	end := make([]byte, 2*tarBlock)
	f := rawFile("f", "data")
	tars := map[string][]byte{
		"a file twice":               makeTar(t, entry{name: "f", data: "first"}, entry{name: "f", data: "second"}),
		"a file twice, the same":     makeTar(t, entry{name: "f", data: "first"}, entry{name: "./f", data: "first"}),
		"a file twice, another size": makeTar(t, entry{name: "f", data: strings.Repeat("long", 50_000)}, entry{name: "f", data: "short"}),
		"a file thrice":              makeTar(t, entry{name: "f", data: "1"}, entry{name: "f", data: "2"}, entry{name: "f", data: "3"}),
		"a file twice, then empty":   makeTar(t, entry{name: "f", data: "first"}, entry{name: "f"}),
		"a directory, then a file":   makeTar(t, entry{name: "d/"}, entry{name: "d/e/"}, entry{name: "d/e/f", data: "first"}, entry{name: "d", data: "second"}),
		"a file, then a directory":   makeTar(t, entry{name: "d", data: "first"}, entry{name: "d/"}, entry{name: "d/f", data: "second"}),
		"a file, then a link": makeTar(t, entry{name: "g", data: "g"}, entry{name: "f", data: "f"},
			entry{name: "f", change: kind(tar.TypeSymlink, "g")}),
		"a file, then a hard link": makeTar(t, entry{name: "g", data: "g"}, entry{name: "f", data: "f"},
			entry{name: "f", change: kind(tar.TypeLink, "g")}),
		"a hard link to what is replaced": makeTar(t, entry{name: "f", data: "first"}, entry{name: "g", change: kind(tar.TypeLink, "f")},
			entry{name: "f", data: "second"}),
		"a hard link that is replaced": makeTar(t, entry{name: "f", data: "first"}, entry{name: "g", change: kind(tar.TypeLink, "f")},
			entry{name: "g", data: "second"}),
		"a file twice, by a link": makeTar(t, entry{name: "d/"}, entry{name: "l", change: kind(tar.TypeSymlink, "d")},
			entry{name: "d/f", data: "first"}, entry{name: "l/f", data: "second"}),
		"a file twice, by a link below": makeTar(t, entry{name: "usr/bin/f", data: "first"}, entry{name: "bin/f", data: "second"}),
		"a whiteout of its own":         makeTar(t, entry{name: "f", data: "f"}, entry{name: ".wh.f"}),
		"a whiteout of its directory":   makeTar(t, entry{name: "d/"}, entry{name: "d/f", data: "f"}, entry{name: ".wh.d"}),
		"a whiteout with data":          makeTar(t, entry{name: "usr/.wh.bin", data: "gone"}, entry{name: "etc/.wh..wh..opq", data: "opaque"}),
		"files of aufs": makeTar(t, entry{name: ".wh..wh.plnk/", change: kind(tar.TypeDir, "")}, entry{name: ".wh..wh.plnk/1.2", data: "aufs"},
			entry{name: "f", change: kind(tar.TypeLink, ".wh..wh.plnk/1.2")}, entry{name: ".wh..wh.aufs", data: "x"}),
		"a size of a directory":      rawTar(rawEntry(tar.TypeDir, "d/", "", 4096, ""), f),
		"a size of a link":           rawTar(f, rawEntry(tar.TypeSymlink, "l", "f", 1, ""), rawEntry(tar.TypeLink, "h", "f", 4, "")),
		"a size of a fifo":           rawTar(rawEntry(tar.TypeFifo, "p", "", 5, ""), f),
		"a file with a slash":        rawTar(rawEntry(tar.TypeReg, "f/", "", 4, "data")),
		"a file by an absolute name": rawTar(rawFile("/d/../f", "data")),
		"a name that is not UTF-8":   rawTar(rawFile("f\xe4\xff", "data")),
		"the root as a file":         rawTar(rawFile("./", "data"), f),
		"a global header": makeTar(t, entry{name: "f", data: "f"}, entry{change: func(h *tar.Header) {
			*h = tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}
		}}),
		"a very long name":              makeTar(t, entry{name: strings.Repeat("d/", 2500) + "f", data: "data", change: func(h *tar.Header) { h.Format = tar.FormatPAX }}),
		"dirty padding":                 rawTar(dirty(rawFile("f", "data")), rawFile("g", "data")),
		"dirty padding of a header":     rawTar(dirty(rawEntry(tar.TypeXHeader, "x", "", 13, "13 comment=x\n")), f),
		"dirty padding last":            rawTar(rawFile("f", "data"), dirty(rawFile("g", "data"))),
		"dirty padding without an end":  dirty(rawFile("f", "data")),
		"no end mark":                   f,
		"half an end mark":              append(bytes.Clone(f), end[:tarBlock]...),
		"no padding":                    f[:tarBlock+4],
		"bytes behind the end":          append(rawTar(f), "garbage"...),
		"a tar behind the end":          append(rawTar(f), rawTar(f)...),
		"much behind the end":           append(rawTar(f), noise(1<<20)...),
		"many zeros behind the end":     append(rawTar(f), make([]byte, maxKept+1<<20)...),
		"zeros, and then a byte":        append(append(rawTar(f), make([]byte, 100_000)...), '\n'),
		"nothing but the end mark":      end,
		"an empty tar":                  {},
		"a sparse file with odd pieces": oddSparse(),
	}
	for _, name := range []string{"03-dirty-padding.tar", "11-rootfs-trailing-garbage.tar", "11-rootfs-trailing-newline.tar"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		tars[name] = data
	}
	maps.Copy(tars, sparseTars(t))
	return tars
}

// sparseTars has GNU tar write files with holes in all of its formats.
func sparseTars(t testing.TB) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	for name, pieces := range map[string][]int64{
		"hole": nil, "first": {0}, "last": {1<<20 - 3000}, "middle": {300_000, 400_000}, "many": {0, 8192, 16384, 65536, 131072, 262144, 300_000, 333_333, 444_444, 555_555},
	} {
		file, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		require.NoError(t, file.Truncate(1<<20))
		for _, at := range pieces {
			_, err := file.WriteAt([]byte(noise(3000)), at)
			require.NoError(t, err)
		}
		require.NoError(t, file.Close())
	}
	tars := make(map[string][]byte)
	for name, flags := range map[string][]string{
		"old GNU": {"--format=gnu"}, "0.0": {"--format=posix", "--sparse-version=0.0"}, "0.1": {"--format=posix", "--sparse-version=0.1"}, "1.0": {"--format=posix", "--sparse-version=1.0"},
	} {
		for _, holes := range []string{"seek", "raw"} {
			args := slices.Concat([]string{"--create", "--sparse", "--hole-detection=" + holes, "--directory", dir}, flags, []string{"hole", "first", "last", "middle", "many"})
			data, err := exec.Command("tar", args...).Output()
			require.NoError(t, err)
			require.Less(t, len(data), 200_000, "it is sparse")
			tars["sparse "+name+", "+holes] = data
		}
	}
	// The same twice: the first of each has to be kept.
	tars["sparse twice"] = slices.Concat(tars["sparse 1.0, seek"][:len(tars["sparse 1.0, seek"])-20*tarBlock], makeTar(t, entry{name: "many", data: "many"}))
	return tars
}

// watchLog has the store log into the result.
func (s *Store) watchLog() *bytes.Buffer {
	var log bytes.Buffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	return &log
}

// TestExportExactly imports layers of all kinds, and requires them to come out as they were.
func TestExportExactly(t *testing.T) {
	s := newTestStore(t)
	log := s.watchLog()
	base := baseTar(t)
	for name, data := range oddTars(t) {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			img := makeImage(t, base, data)
			imported := s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{Replace: true})
			require.Equal(t, imageID(t, img), imported.Image.ID())
			assert.NotContains(t, log.String(), "byte for byte")
			dir := filepath.Join(t.TempDir(), "layout")
			exported, err := s.Export(t.Context(), "app:1", Reference{Transport: OCILayout, Path: dir}, ExportOptions{Exact: true, Format: layertar.Zstd})
			require.NoError(t, err)
			assert.Equal(t, diffIDs(t, img), exported.Layers)
			assert.Equal(t, imageID(t, img), exported.Image)
			files, err := os.ReadDir(s.path(tarSplitDir))
			require.NoError(t, err)
			assert.Len(t, files, 2, "nothing is left of a first try")
		})
	}
}

// Data of the tree is referred to, whatever holes the tar leaves out.
func TestSplitTarKeepsLittle(t *testing.T) {
	tars := sparseTars(t)
	delete(tars, "sparse twice")
	tars["dense"] = rawTar(rawFile("f", noise(1<<20)))
	for name, data := range tars {
		var parts bytes.Buffer
		_, err := splitTar(bytes.NewReader(data), &parts, nil)
		require.NoError(t, err)
		assert.Less(t, parts.Len(), len(data)/2, name)
	}
}

// A layer of which too much would have to be kept is imported, and its other digest told of.
func TestExportInexactly(t *testing.T) {
	s := newTestStore(t)
	log := s.watchLog()
	for name, data := range map[string][]byte{
		"files replaced":       makeTar(t, entry{name: "f", data: noise(maxKept + 1)}, entry{name: "f", data: "second"}),
		"bytes behind the end": append(rawTar(), noise(maxKept+1)...),
	} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			img := makeImage(t, data)
			s.mustImport(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{Replace: true})
			assert.Contains(t, log.String(), "will not be exported byte for byte")
			assert.Contains(t, log.String(), digest.FromBytes(data).String())
			assert.Contains(t, log.String(), "more than 16 MiB")
			files, err := os.ReadDir(s.path(tarSplitDir))
			require.NoError(t, err)
			assert.Empty(t, files)
			dir := filepath.Join(t.TempDir(), "layout")
			_, err = s.Export(t.Context(), "app:1", Reference{Transport: OCILayout, Path: dir}, ExportOptions{Exact: true})
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			exported, err := s.Export(t.Context(), "app:1", Reference{Transport: OCILayout, Path: dir}, ExportOptions{})
			require.NoError(t, err)
			assert.Equal(t, imageID(t, img), exported.Was)
		})
	}
}

// TestRootFSAsTar imports root filesystems that GNU tar reads, and requires warnings of ignored parts.
func TestRootFSAsTar(t *testing.T) {
	s := newTestStore(t)
	log := s.watchLog()
	f, end := rawFile("f", "data"), make([]byte, 2*tarBlock)
	second := rawFile("g", "data")
	for name, tt := range map[string]struct {
		data []byte
		says string // "": nothing
	}{
		"as it should be":           {rawTar(f), ""},
		"zeros behind the end":      {append(rawTar(f), make([]byte, 7*tarBlock)...), ""},
		"a newline behind the end":  {append(rawTar(f), '\n'), "bytes=1"},
		"a newline behind zeros":    {slices.Concat(rawTar(f), make([]byte, 200_000), []byte("x\x00\n"), end), "bytes=3"},
		"garbage behind the end":    {append(rawTar(f), "garbage"...), "bytes=7"},
		"no end mark":               {f, "blocks=0"},
		"half an end mark":          {slices.Concat(f, end[:tarBlock]), "blocks=1"},
		"half an end mark and more": {slices.Concat(f, end[:tarBlock], []byte("\n")), "blocks=1"},
		"a zero block between":      {slices.Concat(f, end[:tarBlock], second, end), "bytes=516"},
		"part of a header":          {slices.Concat(f, second[:100]), "bytes="},
		"dirty padding":             {slices.Concat(dirty(rawFile("f", "data")), end), "entries=1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.tar")
			require.NoError(t, os.WriteFile(path, tt.data, 0o600))
			for _, ref := range []string{path, "rootfs:" + path, "rootfs:" + gzipped(t, path)} {
				log.Reset()
				imported := s.mustImport(t, ref, ImportOptions{Replace: true})
				assert.Equal(t, []digest.Digest{digest.FromBytes(tt.data)}, imported.Image.DiffIDs())
				data, err := os.ReadFile(s.fileIn(t, imported.Image.Top(), "f"))
				require.NoError(t, err)
				assert.Equal(t, "data", string(data))
				if tt.says == "" {
					assert.Empty(t, log.String())
				} else {
					assert.Contains(t, log.String(), "root.tar")
					assert.Contains(t, log.String(), tt.says)
				}
				exported := s.mustExport(t, "root", "oci:"+t.TempDir()+"/x", ExportOptions{Exact: true})
				assert.Equal(t, imported.Image.DiffIDs(), exported.Layers)
				_, err = s.Remove(t.Context(), "root")
				require.NoError(t, err)
			}
		})
	}
	for name, data := range map[string][]byte{"empty": {}, "a line": []byte("not found\n"), "a cut header": f[:300], "cut in a file": f[:514]} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.tar")
			require.NoError(t, os.WriteFile(path, data, 0o600))
			s.requireUnchanged(t, func() {
				_, err := s.importRef(t, "rootfs:"+path, ImportOptions{})
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			})
		})
	}
	t.Run("read once", func(t *testing.T) {
		log.Reset()
		src, err := Open(t.Context(), mustParse(t, "rootfs:-"), OpenOptions{Stdin: bytes.NewReader(rawTar(f, rawFile("f", "other")))})
		require.NoError(t, err)
		_, err = s.Import(t.Context(), src, ImportOptions{Name: "once"})
		require.NoError(t, err)
		assert.Contains(t, log.String(), "will not be exported byte for byte")
		assert.Contains(t, log.String(), "write it to a file first")
	})
	t.Run("read twice", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "twice.tar")
		require.NoError(t, os.WriteFile(path, rawTar(f, rawFile("f", "different")), 0o600))
		for _, ref := range []string{path, "rootfs:" + path, gzipped(t, path), "rootfs:" + gzipped(t, path)} {
			s.mustImport(t, ref, ImportOptions{Replace: true})
			s.mustExport(t, "twice", "oci:"+t.TempDir()+"/x", ExportOptions{Exact: true})
			_, err := s.Remove(t.Context(), "twice")
			require.NoError(t, err)
		}
	})
}

// TestExportRandomLayers has random layers, whose entries take each other's place, come out as they were.
func TestExportRandomLayers(t *testing.T) {
	s := newTestStore(t)
	log := s.watchLog()
	base := makeTar(t, entry{name: "a/"}, entry{name: "a/b/"}, entry{name: "l", change: kind(tar.TypeSymlink, "a/b")},
		entry{name: "b", change: kind(tar.TypeSymlink, "/a")}, entry{name: "c", data: "lower"})
	seed := uint64(time.Now().UnixNano())
	applied := 0
	for n := range uint64(30) {
		layer := randomLayer(t, rand.New(rand.NewPCG(seed, n)))
		log.Reset()
		img := makeImage(t, base, layer)
		_, err := s.importRef(t, writeDockerArchive(t, map[string]v1.Image{"app:1": img}), ImportOptions{Replace: true})
		if err != nil {
			continue // a hard link to nothing, say
		}
		applied++
		_, err = s.Export(t.Context(), "app:1", Reference{Transport: OCILayout, Path: filepath.Join(t.TempDir(), "x")}, ExportOptions{Exact: true})
		require.NoError(t, err, "seed %d, layer %d: %s", seed, n, log)
	}
	assert.Greater(t, applied, 10)
}

func randomLayer(t *testing.T, r *rand.Rand) []byte {
	files := []string{"c", "f", "a/x", "b/x", "l/x", "a/b/x", "n/m/x", "l/n/x", "b/b/x"}
	dirs := []string{"a", "b", "l", "a/b", "n", "n/m", "l/n"}
	all := slices.Concat(files, files, dirs)
	name := func(of []string) string { return of[r.IntN(len(of))] }
	entries := []entry{{name: "f", data: "first"}}
	for range 3 + r.IntN(10) {
		e := entry{name: name(all)}
		switch r.IntN(10) {
		case 0:
			e.name = name(dirs) + "/"
		case 1:
			e.change = kind(tar.TypeSymlink, name(dirs))
		case 2:
			e.name, e.change = name(files), kind(tar.TypeLink, name(files))
		case 3:
			dir, base := filepath.Split(e.name)
			e.name = dir + archive.WhiteoutPrefix + base
		case 4:
			e.name = filepath.Dir(e.name) + "/" + archive.WhiteoutOpaqueDir
		default:
			e.name, e.data = name(files), noise(3 + r.IntN(2000))[r.IntN(3):]
		}
		entries = append(entries, e)
	}
	return makeTar(t, entries...)
}

// TestExportCases takes layouts that once went wrong through the store. They come out with their ID, and with a layer more
// their history matches the layers.
func TestExportCases(t *testing.T) {
	s := newTestStore(t)
	for _, name := range []string{"file-then-whiteout", "history-empty-layers", "no-history"} {
		t.Run(name, func(t *testing.T) {
			imported := s.mustImport(t, "oci:"+filepath.Join("testdata", name), ImportOptions{Name: name})
			out := filepath.Join(t.TempDir(), "layout")
			exported := s.mustExport(t, name, "oci:"+out, ExportOptions{Exact: true})
			assert.Equal(t, imported.Image.ID(), exported.Image)

			s.makeLayer(t, name+"-top", imported.Image.Top(), "added", name)
			exported = s.mustExport(t, name+"-top", "oci:"+out, ExportOptions{Name: "top:1"})
			again := s.mustImport(t, "oci:"+out+":top:1", ImportOptions{Name: name + "-again"})
			require.Equal(t, exported.Image, again.Image.ID())
			var config ocispec.Image
			require.NoError(t, json.Unmarshal(again.Image.Config, &config))
			entries := 0
			for _, h := range config.History {
				if !h.EmptyLayer {
					entries++
				}
			}
			assert.Len(t, config.RootFS.DiffIDs, entries)
		})
	}
}
