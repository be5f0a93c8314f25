//go:build linux

package graphtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var applyTests = []Test{
	{"ApplyWhiteouts", applyWhiteouts},
	{"ApplyOpaque", applyOpaque},
	{"ApplyReplaces", applyReplaces},
	{"ApplyWithoutDirectories", applyWithoutDirectories},
	{"ApplyBrokenTar", applyBrokenTar},
	{"ApplyStaysInside", applyStaysInside},
}

// makeTar writes a tar of the headers. Regular files get as many x as their size says.
func makeTar(t testing.TB, all ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range all {
		h.ModTime = editTime
		h.Format = tar.FormatPAX
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func regular(name string, size int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size}
}

func directory(name string) tar.Header {
	return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}
}

// paths lists the tree's paths without the root.
func (s snapshot) paths() []string {
	list := s.added()
	for i := range list {
		list[i] = strings.TrimPrefix(list[i], "A /")
	}
	return list
}

func applyWhiteouts(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) {
		w.file("f", "x")
		w.mkdir("d/e")
		w.file("d/e/f", "x")
		w.file("d/g", "x")
	})
	id := l.layer(base)
	size := l.apply(id, base, makeTar(t,
		regular(".wh.f", 0), directory("d"), regular("d/.wh.e", 0), regular(".wh.absent", 0), regular("absent/.wh.f", 0),
		regular(".wh..wh.plnk", 0), regular("d/.wh..wh.aufs", 0),
	))
	assert.Zero(t, size)
	got := l.scan(id)
	delete(got, "absent") // whether the parent of a whiteout for nothing is made is open
	assert.Equal(t, []string{"d", "d/g"}, got.paths())
}

// applyOpaque: an opaque directory loses the files of lower layers and keeps those of this layer, before the marker
// or after.
func applyOpaque(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) {
		w.mkdir("d/lower")
		w.file("d/lower/f", "x")
		w.file("d/file", "x")
		w.file("d/replaced", "lower")
		w.file("beside", "x")
	})
	id := l.layer(base)
	l.apply(id, base, makeTar(t,
		directory("d"), regular("d/before", 1), regular("d/replaced", 2), regular("d/.wh..wh..opq", 0), regular("d/z-after", 1),
	))
	got := l.scan(id)
	assert.Equal(t, []string{"beside", "d", "d/before", "d/replaced", "d/z-after"}, got.paths())
	assert.Equal(t, int64(2), got["d/replaced"].size)
}

// applyReplaces: an entry takes the place of an existing file, unless both are directories.
func applyReplaces(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) {
		w.mkdir("dir-to-file/d")
		w.file("file-to-dir", "x")
		w.mkdir("dir")
		w.file("dir/kept", "x")
		w.file("linked", "x")
		w.link("linked", "other name")
		w.symlink("dir", "symlink")
	})
	id := l.layer(base)
	size := l.apply(id, base, makeTar(t,
		tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1, Gid: 2},
		regular("dir-to-file", 3),
		directory("file-to-dir"), regular("file-to-dir/f", 4),
		regular("linked", 5),
		regular("symlink", 6),
		regular("twice", 7), regular("twice", 8),
	))
	assert.Equal(t, int64(3+4+5+6+7+8), size, "the sum of the sizes in the headers")
	got := l.scan(id)
	assert.Equal(t, []string{
		"dir", "dir-to-file", "dir/kept", "file-to-dir", "file-to-dir/f", "linked", "other name", "symlink", "twice",
	}, got.paths())
	assert.Equal(t, uint32(unix.S_IFDIR|0o700), got["dir"].mode)
	assert.Equal(t, [2]uint32{1, 2}, [2]uint32{got["dir"].uid, got["dir"].gid})
	assert.Equal(t, int64(1), got["other name"].size, "the other name of a replaced file keeps its content")
	assert.Equal(t, uint32(unix.S_IFREG), got["symlink"].mode&unix.S_IFMT, "a symbolic link is replaced, not followed")
	assert.Equal(t, int64(8), got["twice"].size, "the last entry counts")
	for _, name := range []string{"dir", "linked"} {
		assert.Equal(t, editTime.Unix(), got[name].sec, "time of %s", name)
	}
}

// applyWithoutDirectories: directories that a tar leaves out are made.
func applyWithoutDirectories(t testing.TB, c Config) {
	l := c.open(t)
	id := l.layer("")
	old := unix.Umask(0o077)
	l.apply(id, "", makeTar(t, regular("a/b/c/file", 1), regular("./dotted/file", 1), regular("/absolute/file", 1)))
	unix.Umask(old)
	got := l.scan(id)
	assert.Equal(t, []string{
		"a", "a/b", "a/b/c", "a/b/c/file", "absolute", "absolute/file", "dotted", "dotted/file",
	}, got.paths())
	for _, dir := range []string{"a", "a/b", "a/b/c", "absolute", "dotted"} {
		assert.Equal(t, uint32(unix.S_IFDIR|0o755), got[dir].mode, dir)
	}
}

var errReader = errors.New("the network went away")

// applyBrokenTar: a tar that is cut off or is none is an error, and the layer can be removed after it.
func applyBrokenTar(t testing.TB, c Config) {
	l := c.open(t)
	whole := makeTar(t, directory("d"), regular("d/one", 2000), regular("d/two", 100_000))
	// editTime has a fraction, so each entry is an extended header, its records, and a header.
	const block = 512
	var gzipped bytes.Buffer
	z := gzip.NewWriter(&gzipped)
	_, err := z.Write(whole)
	require.NoError(t, err)
	require.NoError(t, z.Close())

	for _, test := range []struct {
		name string
		diff io.Reader
		want error // nil: any
	}{
		{"cut in a file", bytes.NewReader(whole[:len(whole)/2]), io.ErrUnexpectedEOF},
		{"cut in an extended header", bytes.NewReader(whole[:block/2]), io.ErrUnexpectedEOF},
		{"cut in the records of an extended header", bytes.NewReader(whole[:block+block/2]), io.ErrUnexpectedEOF},
		{"cut in a header", bytes.NewReader(whole[:2*block+block/2]), io.ErrUnexpectedEOF},
		{"failing reader", io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), iotest.ErrReader(errReader)), errReader},
		{"failing reader at once", iotest.ErrReader(errReader), errReader},
		{"no tar", bytes.NewReader(randomBytes(3, 10_000)), nil},
		{"compressed", bytes.NewReader(gzipped.Bytes()), nil},
	} {
		subtest(t, test.name, func(t testing.TB) {
			l := l.of(t)
			id := newID()
			require.NoError(t, l.Create(id, "", nil))
			_, err := l.ApplyDiff(id, "", test.diff)
			require.Error(t, err)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
			}
			require.NoError(t, l.Remove(id))
			assert.False(t, l.Exists(id))
		})
	}
}

// applyStaysInside: no tar writes outside the layer, by whatever way out it has built before.
func applyStaysInside(t testing.TB, c Config) {
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "canary"), []byte("alive"), 0o644))
	want := scan(t, outside)
	up := strings.Repeat("../", 30)
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
	}

	l := c.open(t)
	for _, test := range []struct {
		name    string
		headers []tar.Header
	}{
		{"upward name", []tar.Header{regular(up+outside+"/canary", 3)}},
		{"upward name below a directory", []tar.Header{directory("d"), regular("d/"+up+outside+"/new", 3)}},
		{"absolute symbolic link", []tar.Header{link("out", outside), regular("out/canary", 3), regular("out/new", 3)}},
		{"upward symbolic link", []tar.Header{link("out", up+outside), regular("out/canary", 3), regular("out/new", 3)}},
		{"chain of symbolic links", []tar.Header{link("a", up), link("b", "a/"+outside), regular("b/canary", 3)}},
		{"symbolic link as the file", []tar.Header{link("f", outside+"/canary"), regular("f", 3)}},
		{"whiteout through a symbolic link", []tar.Header{link("out", outside), regular("out/.wh.canary", 0)}},
		{"opaque marker through a symbolic link", []tar.Header{link("out", outside), regular("out/.wh..wh..opq", 0)}},
		{"upward whiteout", []tar.Header{regular(up+outside+"/.wh.canary", 0)}},
		{"whiteout of dots", []tar.Header{regular(".wh...", 0), regular(".wh..", 0)}},
		{"hard link to the outside", []tar.Header{hard("f", up+outside+"/canary"), regular("f", 3)}},
		{"hard link through a symbolic link", []tar.Header{link("out", outside), hard("f", "out/canary"), regular("f", 3)}},
		{"mode through a symbolic link", []tar.Header{link("out", outside), {Name: "out/", Typeflag: tar.TypeDir, Mode: 0o777, Uid: 7}}},
		{"device through a symbolic link", []tar.Header{link("out", outside), {Name: "out/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}},
	} {
		subtest(t, test.name, func(t testing.TB) {
			l := l.of(t)
			id := newID()
			require.NoError(t, l.Create(id, "", nil))
			_, err := l.ApplyDiff(id, "", bytes.NewReader(makeTar(t, test.headers...)))
			t.Logf("ApplyDiff: %v", err)
			assertSameTree(t, want, scan(t, outside), "files outside the layer")
			l.scan(id)
			require.NoError(t, l.Remove(id))
		})
	}
}
