package layertar

import (
	"archive/tar"
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/treecmp"
)

// FuzzApply applies any bytes, and expects that nothing outside the root changes and that the layer can be
// removed.
func FuzzApply(f *testing.F) {
	f.Add(tarOf(f, folder("d"), file("d/f", "x"), symlink("s", "../victim"), file("s/x", "1"), hardlink("h", "d/f"), fifo("p")))
	f.Add(tarOf(f, file(".wh.evil", ""), file("d/.wh..wh..opq", ""), file(".wh..wh.plnk/1.2", "x"), hardlink("k", ".wh..wh.plnk/1.2")))
	f.Add(tarOf(f, hardlink("h", "../victim/secret"), file("../x", "")))
	f.Add(tarOf(f, file("f", "").xattr("user.x", "y").owner(1<<21, 5).mode(0o7777), file("ü"+strings.Repeat("long", 50), "")))
	f.Add(rawTar(rawPAX("GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "1024,4", "GNU.sparse.size", "65536"),
		rawHeader(tar.TypeReg, "sparse", 4), rawData("data")))
	f.Add(rawHeader(tar.TypeReg, "big", 1<<40))
	f.Add(rawTar(globalPAX("path", "../victim/secret"), rawHeader(tar.TypeDir, "x/", 0)))
	f.Fuzz(func(t *testing.T, layer []byte) {
		root, check := playground(t)
		size, err := Apply(t.Context(), root, bytes.NewReader(layer), ApplyOptions{
			MaxBytes: 16 << 20, Workers: 1 + len(layer)%3, LooseEnd: len(layer)%5 == 0, Logger: slog.New(slog.DiscardHandler), Xattrs: XattrPolicy(len(layer) % 3),
		})
		check(t)
		assert.NotNil(t, &size)
		if err == nil {
			assert.LessOrEqual(t, size, int64(16<<20))
		}
		assert.NoError(t, os.RemoveAll(root))
	})
}

// script makes a layer of the bytes of a fuzzer, three for each entry: its type, its place, and its reference.
func script(ops []byte) []ent {
	names := []string{"a", "b", "d", "evil", "evilabs", "a/b", "a/a", "b/a/b", "evil/secret", "evil/b", "evilabs/secret", "d/..", "../victim/secret", "/a", "l/a", "l"}
	targets := append([]string{"../victim", "/", "/../../victim", ".", "..", "a/../../victim", "/d", "../../../../../etc"}, names...)
	var entries []ent
	for ; len(ops) >= 3 && len(entries) < 60; ops = ops[3:] {
		name := names[int(ops[1])%len(names)]
		target := targets[int(ops[2])%len(targets)]
		dir, base := filepath.Split(name)
		var e ent
		switch ops[0] % 9 {
		case 0:
			e = file(name, strings.Repeat("x", int(ops[2])*3))
		case 1:
			e = folder(name)
		case 2, 3:
			e = symlink(name, target)
		case 4:
			e = hardlink(name, target)
		case 5:
			e = file(dir+archive.WhiteoutPrefix+base, "")
		case 6:
			e = file(dir+archive.WhiteoutOpaqueDir, "")
		case 7:
			e = fifo(name)
		case 8:
			e = file(name, strings.Repeat("long", 20_000))
		}
		mode := []int64{0o644, 0o755, 0o4711, 0o1777}[ops[0]/9%4]
		entries = append(entries, e.mode(mode).time(past.Add(time.Duration(ops[2])*time.Second)))
	}
	return entries
}

// FuzzApplyScript is FuzzApply with well-formed layers, entry after entry replacing files that others lead through.
func FuzzApplyScript(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x05\x05"))                                     // a link, a file through it
	f.Add([]byte("\x01\x00\x00\x00\x05\x05\x02\x00\x00\x00\x05\x05"))             // a directory swapped for a link
	f.Add([]byte("\x05\x03\x00\x01\x03\x00\x00\x09\x01\x06\x09\x00"))             // whiteouts and opaque markers
	f.Add([]byte("\x04\x00\x08\x02\x0f\x02\x04\x01\x0f\x00\x0e\x10\x08\x0f\x01")) // hard links
	f.Add([]byte("\x02\x0f\x0b\x01\x0e\x00\x02\x0e\x00\x06\x0e\x00\x05\x0f\x00\x07\x0f\x00"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		root, check := playground(t)
		layer := script(ops)
		_, err := Apply(t.Context(), root, bytes.NewReader(tarOf(t, layer...)), ApplyOptions{Workers: 1 + len(ops)%3})
		check(t)
		if t.Failed() {
			t.Logf("%v\n%s", err, describe(layer))
		}
		assert.NoError(t, os.RemoveAll(root))
	})
}

// FuzzWriteRoundTrip makes a tree, writes it, applies that, and expects the same tree, and the same bytes of
// it.
func FuzzWriteRoundTrip(f *testing.F) {
	f.Add([]byte("\x00\x05\x05\x01\x01\x01\x02\x0f\x0f\x04\x02\x05\x07\x07\x00"))
	f.Add([]byte("\x08\x00\xff\x04\x01\x08\x04\x02\x09\x24\x0f\x01"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		base := t.TempDir()
		a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
		must(t, os.Mkdir(a, 0o755))
		must(t, os.Mkdir(b, 0o755))
		if _, err := Apply(t.Context(), a, bytes.NewReader(tarOf(t, script(ops)...)), ApplyOptions{Empty: true}); err != nil {
			return
		}
		layer := write(t, a, all(t, a), WriteOptions{Workers: 1 + len(ops)%3})
		apply(t, b, layer, ApplyOptions{Empty: len(ops)%2 == 0})
		treecmp.Equal(t, a, b, treecmp.Options{WholeSeconds: true})
		require.True(t, bytes.Equal(layer, write(t, b, all(t, b), WriteOptions{})))
	})
}

// FuzzDecompress reads any bytes as if they were compressed, up to a limit.
func FuzzDecompress(f *testing.F) {
	for _, format := range []Format{Plain, Gzip, Zstd} {
		var b bytes.Buffer
		w, err := Compress(&b, format, 0)
		require.NoError(f, err)
		_, err = w.Write(bytes.Repeat([]byte("layer"), 1000))
		require.NoError(f, err)
		require.NoError(f, w.Close())
		f.Add(b.Bytes())
		f.Add(b.Bytes()[:b.Len()/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _, err := Decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, r, 4<<20)
		require.NoError(t, r.Close())
	})
}
