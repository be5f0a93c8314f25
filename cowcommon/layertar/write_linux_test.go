package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

func TestWriteFormat(t *testing.T) {
	dir := t.TempDir()
	odd := time.Unix(1_500_000_000, 999_999_999)
	apply(t, dir, tarOf(t,
		folder("d").mode(0o1777), file("d/f", "data").mode(0o4711).time(odd), hardlink("d/h", "d/f").mode(0o4711).time(odd),
		symlink("s", "d/f"), fifo("p"), file("empty", ""), file("a.b", "1"), folder("a"), file("a/c", "2"),
	), ApplyOptions{})
	changes := append(all(t, dir),
		archive.Change{Path: "/", Kind: archive.ChangeModify},
		archive.Change{Path: "/gone", Kind: archive.ChangeDelete},
		archive.Change{Path: "/d/gone.too", Kind: archive.ChangeDelete},
		archive.Change{Path: "/.wh.gone", Kind: archive.ChangeDelete},
	)
	before := slices.Clone(changes)
	layer := write(t, dir, changes, WriteOptions{})
	assert.Equal(t, before, changes, "the caller's changes stay as they are")
	assert.Zero(t, len(layer)%blockSize)
	assert.Equal(t, make([]byte, 2*blockSize), layer[len(layer)-2*blockSize:])

	hdrs, data := headers(t, layer)
	type line struct {
		kind       byte
		name, link string
		mode, size int64
		mtime      int64
	}
	var got []line
	for _, h := range hdrs {
		got = append(got, line{h.Typeflag, h.Name, h.Linkname, h.Mode, h.Size, h.ModTime.Unix()})
		assert.Zero(t, h.ModTime.Nanosecond())
		assert.True(t, h.AccessTime.IsZero() && h.ChangeTime.IsZero())
		assert.Empty(t, h.Uname+h.Gname)
		assert.Empty(t, h.PAXRecords)
		if !strings.Contains(h.Name, ".wh.") {
			assert.Equal(t, [2]int{os.Getuid(), os.Getgid()}, [2]int{h.Uid, h.Gid})
		}
	}
	at := past.Unix()
	assert.Equal(t, []line{
		{tar.TypeDir, "a/", "", 0o755, 0, at},
		{tar.TypeReg, "a.b", "", 0o644, 1, at},
		{tar.TypeReg, "a/c", "", 0o644, 1, at},
		{tar.TypeDir, "d/", "", 0o1777, 0, at},
		{tar.TypeReg, "d/f", "", 0o4711, 4, at},
		{tar.TypeReg, "d/.wh.gone.too", "", 0, 0, 0},
		{tar.TypeLink, "d/h", "d/f", 0o4711, 0, at},
		{tar.TypeReg, "empty", "", 0o644, 0, at},
		{tar.TypeReg, ".wh.gone", "", 0, 0, 0},
		{tar.TypeFifo, "p", "", 0o600, 0, at},
		{tar.TypeSymlink, "s", "d/f", 0o777, 0, at},
	}, got)
	assert.Equal(t, "data", data["d/f"])
}

func TestWriteEpoch(t *testing.T) {
	dir := t.TempDir()
	apply(t, dir, tarOf(t, file("old", "").time(past.Add(-time.Hour)), file("new", "").time(past.Add(time.Hour))), ApplyOptions{})
	epoch := past.Add(time.Millisecond)
	hdrs, _ := headers(t, write(t, dir, append(all(t, dir), archive.Change{Path: "/zzz", Kind: archive.ChangeDelete}), WriteOptions{Epoch: &epoch}))
	var got []int64
	for _, h := range hdrs {
		got = append(got, h.ModTime.Unix()-past.Unix())
	}
	assert.Equal(t, []int64{0, -3600, 0}, got)
}

func TestWriteHardLinks(t *testing.T) {
	dir := t.TempDir()
	apply(t, dir, tarOf(t, file("a", "1"), hardlink("b", "a"), hardlink("c", "a"), symlink("s", "a"), hardlink("t", "s"), folder("z")), ApplyOptions{})
	var many []ent
	for i := range 500 {
		many = append(many, hardlink(fmt.Sprintf("z/%03d", i), "a"))
	}
	apply(t, dir, tarOf(t, many...), ApplyOptions{})

	for _, workers := range []int{1, 2, 8} {
		hdrs, data := headers(t, write(t, dir, all(t, dir), WriteOptions{Workers: workers}))
		for _, h := range hdrs {
			switch {
			case h.Name == "a":
				assert.Equal(t, "1", data["a"])
			case h.Name == "s":
				assert.Equal(t, byte(tar.TypeSymlink), h.Typeflag)
			case h.Name == "t":
				assert.Equal(t, []any{byte(tar.TypeLink), "s"}, []any{h.Typeflag, h.Linkname})
			case h.Name != "z/":
				assert.Equal(t, []any{byte(tar.TypeLink), "a"}, []any{h.Typeflag, h.Linkname}, "%s", h.Name)
			}
		}
		// A new link to a file that is not in the change set.
		hdrs, data = headers(t, write(t, dir, []archive.Change{{Path: "/b"}, {Path: "/c"}}, WriteOptions{Workers: workers}))
		assert.Equal(t, "1", data["b"])
		assert.Equal(t, []any{byte(tar.TypeLink), "b"}, []any{hdrs[1].Typeflag, hdrs[1].Linkname})
	}
}

func TestWriteLeavesOutSockets(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	defer l.Close()
	hdrs, _ := headers(t, write(t, dir, []archive.Change{{Path: "/s"}}, WriteOptions{}))
	assert.Empty(t, hdrs)
}

func TestWriteReservedNames(t *testing.T) {
	for _, name := range []string{".wh.x", ".wh..wh..opq", ".wh."} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		err := Write(t.Context(), io.Discard, dir, all(t, dir), WriteOptions{})
		require.ErrorIs(t, err, ErrReservedName)
		require.ErrorContains(t, err, name)
	}
}

func TestWriteXattrs(t *testing.T) {
	testfs.Root(t)
	dir := testfs.Btrfs(t)
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.Symlink("f", filepath.Join(dir, "s")))
	capV3 := "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00"
	for name, attrs := range map[string]map[string]string{
		"f": {
			"user.a": "1", "user.empty": "", "trusted.b": "2", capability: capV3, "user.a=b": "=",
			"user.overlay.origin": "x", "trusted.overlay.opaque": "y", "trusted.cowshed.x": "z", "user.fuseoverlayfs.x": "x",
			"security.odd": "x", aclAccess: acl(9), "btrfs.compression": "zstd",
		},
		"d": {aclDefault: acl(9), "user.d": "3"},
		"s": {"trusted.s": "4"},
	} {
		for attr, value := range attrs {
			require.NoError(t, unix.Lsetxattr(filepath.Join(dir, name), attr, []byte(value), 0), "%s", attr)
		}
	}
	var log bytes.Buffer
	layer := write(t, dir, all(t, dir), WriteOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	assert.Contains(t, log.String(), "user.a=b")
	hdrs, _ := headers(t, layer)
	got := make(map[string]map[string]string)
	for _, h := range hdrs {
		got[h.Name] = make(map[string]string)
		for k, v := range h.PAXRecords {
			got[h.Name][strings.TrimPrefix(k, paxXattr)] = v
		}
	}
	capV2 := capV3[:3] + "\x02" + capV3[4:20]
	assert.Equal(t, map[string]map[string]string{
		"f":  {"user.a": "1", "user.empty": "", "trusted.b": "2", capability: capV2, aclAccess: acl(9)},
		"d/": {aclDefault: acl(9), "user.d": "3"},
		"s":  {"trusted.s": "4"},
	}, got)

	// The peers apply it too.
	again, theirs := filepath.Join(dir, "again"), filepath.Join(dir, "theirs")
	must(t, os.Mkdir(again, 0o755))
	must(t, os.Mkdir(theirs, 0o755))
	apply(t, again, layer, ApplyOptions{Empty: true})
	_, err := archive.UnpackLayer(theirs, bytes.NewReader(layer), &archive.TarOptions{})
	require.NoError(t, err)
	// go-archive sets the attributes of a symbolic link on its target.
	treecmp.Equal(t, again, theirs, treecmp.Options{SkipXattr: func(_, name string) bool { return name == "trusted.s" }})
}

func TestWriteSparse(t *testing.T) {
	dir := testfs.Btrfs(t)
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	require.NoError(t, err)
	const size = 1<<30 + 12345
	for at, data := range map[int64]string{0: "begin", 1 << 28: "middle", 1<<29 + 777: "late"} {
		_, err := f.WriteAt([]byte(data), at)
		require.NoError(t, err)
	}
	must(t, f.Truncate(size))
	must(t, f.Close())
	must(t, os.WriteFile(filepath.Join(dir, "after"), []byte("after"), 0o644))
	testfs.Sync(t, dir)

	// Through a pipe into a second file: 1 GiB of zeros must be held nowhere.
	copied := filepath.Join(dir, "copied")
	must(t, os.Mkdir(copied, 0o755))
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(Write(t.Context(), pw, dir, []archive.Change{{Path: "/sparse"}, {Path: "/after"}}, WriteOptions{}))
	}()
	n, err := Apply(t.Context(), copied, pr, ApplyOptions{Empty: true})
	require.NoError(t, err)
	assert.EqualValues(t, size+5, n)
	testfs.Sync(t, dir)
	st := stat(t, copied, "sparse")
	assert.EqualValues(t, size, st.Size)
	assert.Less(t, st.Blocks*blockSize, int64(1<<20))
	g, err := os.Open(filepath.Join(copied, "sparse"))
	require.NoError(t, err)
	defer g.Close()
	for at, data := range map[int64]string{0: "begin\x00", 1<<28 - 1: "\x00middle\x00", 1<<29 + 777: "late"} {
		buf := make([]byte, len(data))
		_, err := g.ReadAt(buf, at)
		require.NoError(t, err)
		assert.Equal(t, data, string(buf))
	}
}

// TestRoundTrip writes a tree with everything that a layer can hold and applies it, with both packages.
func TestRoundTrip(t *testing.T) {
	testfs.Root(t)
	base := testfs.Btrfs(t)
	dir := filepath.Join(base, "tree")
	must(t, os.Mkdir(dir, 0o755))
	odd := []string{"new\nline", "\xff\xfe not UTF-8", strings.Repeat("l", 255), " ", "-rf", "täg", "a\\b", "wh.x", ".whx", "back`tick", "%00", "\x01", "ünï/cödé"}
	entries := []ent{
		folder("d").mode(0o3775).owner(1, 2), file("d/suid", "x").mode(0o6755).owner(3, 4), file("none", "").mode(0).owner(4_000_000_000, 5),
		symlink("s", "../outside/\xff").owner(6, 7), symlink("abs", "/etc/passwd"), fifo("p").owner(8, 9), hardlink("hp", "p").mode(0o600).owner(8, 9),
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "c", Mode: 0o666, Devmajor: 1, Devminor: 3, Uid: 1}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "b", Mode: 0o600, Devmajor: 4095, Devminor: 1<<20 - 1}},
		file("cap", "x").mode(0o755).xattr(capability, "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00").xattr("user.\xff", "\x00\xff"),
		file("acl", "x").mode(0o774).xattr(aclAccess, acl(77)), file("a", "data").owner(1, 1), hardlink("z/a", "a").owner(1, 1),
		file("large", strings.Repeat("0123456789abcdef", 1<<18)), file(strings.Repeat("deep/", 900)+"f", "deep"),
		file("old", "").time(time.Unix(1, 0)),
	}
	for _, name := range odd {
		entries = append(entries, file(name, name))
	}
	apply(t, dir, tarOf(t, entries...), ApplyOptions{Empty: true})

	// Changes are made by hand where ChangesDirs fails on long paths.
	must(t, os.Rename(filepath.Join(dir, "deep"), filepath.Join(base, "deep")))
	changes := all(t, dir)
	must(t, os.Rename(filepath.Join(base, "deep"), filepath.Join(dir, "deep")))
	theirs := filepath.Join(base, "theirs")
	must(t, os.Mkdir(theirs, 0o755))
	_, err := archive.UnpackLayer(theirs, bytes.NewReader(write(t, dir, changes, WriteOptions{})), &archive.TarOptions{})
	require.NoError(t, err)
	treecmp.Equal(t, dir, theirs, treecmp.Options{WholeSeconds: true, Skip: func(p string) bool { return p == "deep" }})

	p := ""
	for range 900 {
		p += "/deep"
		changes = append(changes, archive.Change{Path: p, Kind: archive.ChangeAdd})
	}
	changes = append(changes, archive.Change{Path: p + "/f", Kind: archive.ChangeAdd})
	layer := write(t, dir, changes, WriteOptions{})
	for i, opts := range []ApplyOptions{{Empty: true}, {Workers: 1}, {Workers: 5}} {
		ours := filepath.Join(base, fmt.Sprint("ours", i))
		must(t, os.Mkdir(ours, 0o755))
		apply(t, ours, layer, opts)
		apply(t, ours, layer, ApplyOptions{}) // and once more on top of itself
		treecmp.Equal(t, dir, ours, treecmp.Options{WholeSeconds: true, SkipTime: func(p string) bool { return strings.HasPrefix(p, "deep") || p == "z" || p == "ünï" }})
		assert.True(t, bytes.Equal(layer, write(t, ours, changes, WriteOptions{Workers: 1 + i})), "the same tree gives the same bytes")
	}
}

func TestWriteErrors(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(t, os.Symlink("d", filepath.Join(dir, "s")))
	must(t, os.WriteFile(filepath.Join(dir, "d/f"), []byte("x"), 0o644))
	for _, tt := range []struct {
		path string
		want error
	}{
		{"/missing", unix.ENOENT}, {"/missing/f", unix.ENOENT}, {"/s/f", unix.ENOTDIR}, {"/d/f/x", unix.ENOTDIR},
		{"d/f", errdefs.ErrInvalidArgument}, {"/d/../d/f", errdefs.ErrInvalidArgument}, {"/d/", errdefs.ErrInvalidArgument}, {"", errdefs.ErrInvalidArgument},
	} {
		err := Write(t.Context(), io.Discard, dir, []archive.Change{{Path: "/d"}, {Path: tt.path}}, WriteOptions{})
		require.ErrorIs(t, err, tt.want, "%s", tt.path)
		require.ErrorContains(t, err, fmt.Sprintf("%q", tt.path))
	}
	require.ErrorIs(t, Write(t.Context(), io.Discard, filepath.Join(dir, "missing"), nil, WriteOptions{}), os.ErrNotExist)

	// Files of sysfs say that they are longer than they are, as if they had shrunk.
	err := Write(t.Context(), io.Discard, "/sys/kernel", []archive.Change{{Path: "/uevent_seqnum"}}, WriteOptions{})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorContains(t, err, "/uevent_seqnum")

	// Of several errors the first is returned.
	var changes []archive.Change
	for i := range 300 {
		changes = append(changes, archive.Change{Path: fmt.Sprintf("/missing%03d", i)})
	}
	for range 10 {
		err = Write(t.Context(), io.Discard, dir, changes, WriteOptions{Workers: 4})
		require.ErrorContains(t, err, "missing000")
	}
}

// failAfter is a writer that fails, or calls a function, after some bytes.
type failAfter struct {
	left int
	err  error
	then func()
}

func (w *failAfter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left > 0 {
		return len(p), nil
	}
	if w.then != nil {
		w.then()
		return len(p), nil
	}
	return 0, w.err
}

func TestWriteStops(t *testing.T) {
	dir := t.TempDir()
	var entries []ent
	for i := range 300 {
		entries = append(entries, file(fmt.Sprintf("d%d/f%d", i%10, i), strings.Repeat("x", 10_000)))
	}
	entries = append(entries, file("large", strings.Repeat("x", 20<<20)), hardlink("large2", "large"))
	apply(t, dir, tarOf(t, entries...), ApplyOptions{})
	changes := all(t, dir)
	boom := errors.New("boom")
	for _, at := range []int{0, 1, 1_000_000, 3_500_000, 10 << 20} {
		t.Run(fmt.Sprint("failing writer ", at), func(t *testing.T) {
			testfs.CheckLeaks(t)
			require.ErrorIs(t, Write(t.Context(), &failAfter{left: at, err: boom}, dir, changes, WriteOptions{Workers: 4}), boom)
		})
		t.Run(fmt.Sprint("cancelled ", at), func(t *testing.T) {
			testfs.CheckLeaks(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			require.ErrorIs(t, Write(ctx, &failAfter{left: at, then: cancel}, dir, changes, WriteOptions{Workers: 4}), context.Canceled)
		})
		t.Run(fmt.Sprint("closed reader ", at), func(t *testing.T) {
			testfs.CheckLeaks(t)
			pr, pw := io.Pipe()
			done := make(chan error)
			go func() { done <- Write(t.Context(), pw, dir, changes, WriteOptions{}) }()
			_, _ = io.CopyN(io.Discard, pr, int64(at))
			must(t, pr.Close())
			require.ErrorIs(t, <-done, io.ErrClosedPipe)
		})
	}
}

// TestWriteSaysWhyItStopped ends the context at any moment of writing a few files: the error is the cause, if there is one.
func TestWriteSaysWhyItStopped(t *testing.T) {
	dir := t.TempDir()
	apply(t, dir, tarOf(t, file("a", "1"), file("b", strings.Repeat("x", 2<<20)), file("c", "3")), ApplyOptions{})
	changes := all(t, dir)
	boom := errors.New("boom")
	stopped := 0
	for i := range 1000 {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			time.Sleep(time.Duration(i%10) * 20 * time.Microsecond)
			cancel(boom)
		}()
		if err := Write(ctx, io.Discard, dir, changes, WriteOptions{Workers: 2}); err != nil {
			require.ErrorIs(t, err, boom)
			stopped++
		}
	}
	assert.Positive(t, stopped)
}

// TestWriteDeterministic writes the same tree with any number of workers.
func TestWriteDeterministic(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		sub := filepath.Join(dir, fmt.Sprint(i))
		must(t, os.Mkdir(sub, 0o755))
		// A layer may end early, in an error.
		_, _ = Apply(t.Context(), sub, bytes.NewReader(tarOf(t, newLayers(uint64(i), false).layer(60)...)), ApplyOptions{})
	}
	changes := all(t, dir)
	require.Greater(t, len(changes), 100)
	want := write(t, dir, changes, WriteOptions{Workers: 1})
	for workers := range 8 {
		slices.Reverse(changes)
		assert.True(t, bytes.Equal(want, write(t, dir, changes, WriteOptions{Workers: workers})), "%d workers", workers)
	}
}

// TestWriteManyXattrs: btrfs keeps more extended attributes of a file than the kernel can list.
func TestWriteManyXattrs(t *testing.T) {
	dir := testfs.Btrfs(t)
	apply(t, dir, tarOf(t, file("a", "1"), file("many", "2")), ApplyOptions{})
	for i := range 300 {
		name := fmt.Sprintf("user.%03d.%s", i, strings.Repeat("x", 240))
		require.NoError(t, unix.Setxattr(filepath.Join(dir, "many"), name, []byte("value"), 0))
	}
	err := Write(t.Context(), io.Discard, dir, all(t, dir), WriteOptions{})
	require.ErrorIs(t, err, ErrManyXattrs)
	assert.ErrorContains(t, err, "many")
	require.NoError(t, os.Remove(filepath.Join(dir, "many")))
	require.NoError(t, Write(t.Context(), io.Discard, dir, all(t, dir), WriteOptions{}))
}
