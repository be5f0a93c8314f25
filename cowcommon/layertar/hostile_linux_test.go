package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// playground makes a root with a neighbour that a layer must not touch.
func playground(t testing.TB) (root string, check func(t testing.TB)) {
	t.Helper()
	base := t.TempDir()
	root = filepath.Join(base, "root")
	victim := filepath.Join(base, "victim")
	must(t, os.Mkdir(root, 0o755))
	must(t, os.Mkdir(victim, 0o755))
	must(t, os.WriteFile(filepath.Join(victim, "secret"), []byte("secret"), 0o600))
	must(t, os.Symlink("../victim", filepath.Join(root, "evil")))
	must(t, os.Symlink(victim, filepath.Join(root, "evilabs")))
	must(t, os.Mkdir(filepath.Join(root, "d"), 0o755))
	before, beforeBase := listing(t, victim), lstat(t, victim)
	var names []string
	dir, err := os.ReadDir(base)
	must(t, err)
	for _, e := range dir {
		names = append(names, e.Name())
	}
	secret := lstat(t, filepath.Join(victim, "secret"))
	return root, func(t testing.TB) {
		t.Helper()
		assert.Equal(t, before, listing(t, victim))
		assert.Equal(t, beforeBase, lstat(t, victim))
		assert.Equal(t, secret, lstat(t, filepath.Join(victim, "secret")))
		var now []string
		dir, err := os.ReadDir(base)
		must(t, err)
		for _, e := range dir {
			now = append(now, e.Name())
		}
		assert.Equal(t, names, now)
	}
}

// lstat describes all of a file that an escape could change.
func lstat(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return fmt.Sprint(st.Ino, st.Mode, st.Uid, st.Gid, st.Size, st.Nlink, st.Mtim, st.Ctim)
}

func TestApplyHostile(t *testing.T) {
	testfs.CheckLeaks(t)
	device := func(major, minor int64) ent {
		return ent{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: major, Devminor: minor}}
	}
	longName := strings.Repeat("n", 256)
	for _, tt := range []struct {
		name    string
		layer   []byte
		want    string   // in the error; "": none, and nothing outside is touched
		is      error    // the error
		listing []string // of the root, if it matters
	}{
		{name: "absolute name", layer: tarOf(t, file("/x", "")), listing: []string{"d/", "evil -> ../victim", "x = "}},
		{name: "absolute name and dotdot", layer: tarOf(t, file("/../victim/x", "")), want: `"/../victim/x"`, is: ErrMalformed},
		{name: "dotdot", layer: tarOf(t, file("../victim/x", "")), want: `entry 0, "../victim/x"`, is: ErrMalformed},
		{name: "dotdot inside", layer: tarOf(t, file("d/../../victim/x", "")), want: `"d/../../victim/x"`, is: ErrMalformed},
		{name: "dotdot alone", layer: tarOf(t, folder("..")), want: `"../"`, is: ErrMalformed},
		{name: "file through a relative link", layer: tarOf(t, file("evil/x", ""))},
		{name: "file through an absolute link", layer: tarOf(t, file("evilabs/x", ""))},
		{name: "overwrite through a link", layer: tarOf(t, file("evil/secret", "overwritten"), file("evilabs/secret", "overwritten"))},
		{name: "directory over a link", layer: tarOf(t, folder("evil").mode(0o700), file("evil/x", ""))},
		{name: "file over a link", layer: tarOf(t, file("evil", "x").mode(0))},
		{name: "whiteout through a link", layer: tarOf(t, file("evil/.wh.secret", ""), file("evilabs/.wh.secret", ""))},
		{name: "whiteout of a link", layer: tarOf(t, file(".wh.evil", ""), file(".wh.evilabs", ""))},
		{name: "opaque through a link", layer: tarOf(t, file("evil/.wh..wh..opq", ""), file("evilabs/.wh..wh..opq", ""))},
		{name: "opaque over links", layer: tarOf(t, file(".wh..wh..opq", ""))},
		{name: "hard link to the outside", layer: tarOf(t, hardlink("h", "../victim/secret")), want: `"h"`, is: ErrMalformed},
		{name: "hard link to the outside, absolute", layer: tarOf(t, hardlink("h", "/../../victim/secret")), want: `"h"`, is: ErrMalformed},
		{name: "hard link through a link", layer: tarOf(t, hardlink("h", "evil/secret")), want: `"h"`, is: unix.ENOENT},
		{name: "hard link to a link, then through it", layer: tarOf(t, hardlink("h", "evil"), file("h/x", ""), file("h", "x").mode(0))},
		{name: "hard link to a directory", layer: tarOf(t, hardlink("h", "d")), want: `"h"`, is: unix.EPERM},
		{name: "hard link to the root", layer: tarOf(t, hardlink("h", "/")), want: `"h"`, is: ErrMalformed},
		{name: "hard link to itself", layer: tarOf(t, file("f", ""), hardlink("f", "f")), want: `entry 1, "f"`, is: ErrMalformed},
		{name: "hard link to nothing", layer: tarOf(t, hardlink("h", "missing")), want: `"h"`, is: unix.ENOENT},
		{name: "hard link before its target", layer: tarOf(t, hardlink("h", "f"), file("f", "")), want: `entry 0, "h"`, is: unix.ENOENT},
		{name: "aufs hard link to nothing", layer: tarOf(t, hardlink("h", ".wh..wh.plnk/1.2")), want: `"h"`, is: ErrMalformed},
		{name: "swapped link", layer: tarOf(t, folder("x"), file("x/a", ""), symlink("x", "../victim"), file("x/b", ""), file("x/secret", "overwritten")), listing: []string{
			"d/", "evil -> ../victim", "victim/", "victim/b = ", "victim/secret = overwritten", "x -> ../victim"}},
		{name: "chain of links", layer: tarOf(t, symlink("l1", "d"), symlink("d/l2", ".."), symlink("l3", "l1/l2/../../victim"), file("l3/x", ""))},
		{name: "loop of links", layer: tarOf(t, symlink("l1", "l2"), symlink("l2", "l1"), file("l1/x", "")), want: `"l1/x"`, is: unix.ELOOP},
		{name: "long link", layer: tarOf(t, symlink("l", strings.Repeat("x/", 3000))), want: `"l"`, is: unix.ENAMETOOLONG},
		{name: "empty link", layer: tarOf(t, symlink("l", "")), want: `"l"`, is: unix.ENOENT},
		{name: "whiteout of nothing", layer: tarOf(t, file(".wh.", "")), want: `".wh."`, is: ErrMalformed},
		{name: "whiteout of the directory", layer: tarOf(t, file("d/.wh..", "")), want: `"d/.wh.."`, is: ErrMalformed},
		{name: "whiteout of the parent", layer: tarOf(t, file(".wh...", ""), file("d/.wh...", "")), want: `".wh..."`, is: ErrMalformed},
		{name: "whiteout of the parent, below", layer: tarOf(t, file("d/.wh...", "")), want: `"d/.wh..."`, is: ErrMalformed},
		{name: "device number", layer: tarOf(t, device(4096, 0)), want: `"dev"`, is: ErrMalformed},
		{name: "device number, minor", layer: tarOf(t, device(1, 1<<20)), want: `"dev"`, is: ErrMalformed},
		{name: "owner", layer: tarOf(t, file("f", "").owner(1<<32-1, 0)), want: `"f"`, is: ErrMalformed},
		{name: "negative owner", layer: rawTar(rawPAX("uid", "-5"), rawHeader(tar.TypeReg, "f", 0)), want: `"f"`, is: ErrMalformed},
		{name: "file over a fifo", layer: tarOf(t, fifo("p"), file("p", "x"), fifo("q"), hardlink("r", "q"), file("r", "x"))},
		{name: "path through a fifo", layer: tarOf(t, fifo("p"), file("p/x", "")), want: `"p/x"`, is: unix.ENOTDIR},
		{name: "long component", layer: tarOf(t, file("d/"+longName, "")), want: longName[:100], is: unix.ENAMETOOLONG},
		{name: "long name", layer: tarOf(t, file(strings.Repeat("d/", 40_000)+"f", "")), want: "entry 0", is: ErrMalformed},
		{name: "NUL in a name", layer: rawTar(rawPAX("path", "a\x00b"), rawHeader(tar.TypeReg, "f", 0)), want: "entry 0", is: ErrMalformed},
		{name: "NUL in an attribute", layer: rawTar(rawPAX("SCHILY.xattr.user.a\x00b", "x"), rawHeader(tar.TypeReg, "f", 0)), want: "entry 0", is: ErrMalformed},
		{name: "unknown type", layer: rawTar(rawHeader('Z', "f", 0)), want: `"f"`, is: ErrMalformed},
		{name: "bad checksum", layer: rawTar(rawHeader(tar.TypeReg, "ok", 0), append([]byte("x"), rawHeader(tar.TypeReg, "fff", 0)[1:]...)), want: `entry 1, after "ok"`, is: tar.ErrHeader},
		{name: "not a tar", layer: bytes.Repeat([]byte("not a tar at all "), 100), want: "entry 0", is: ErrMalformed},
		{name: "size beyond the end", layer: rawHeader(tar.TypeReg, "big", 1<<40), want: `entry 0, "big"`, is: io.ErrUnexpectedEOF},
		{name: "size beyond the end, small", layer: append(rawHeader(tar.TypeReg, "big", 5000), "short"...), want: `entry 0, "big"`, is: io.ErrUnexpectedEOF},
		{name: "size beyond the end, after a chunk", layer: append(rawHeader(tar.TypeReg, "big", 5<<20), make([]byte, 3<<20)...), want: `entry 0, "big"`, is: io.ErrUnexpectedEOF},
		{name: "negative size", layer: rawTar(rawHeader(tar.TypeSymlink, "l", -1)), want: "entry 0", is: ErrMalformed},
		{name: "sizes that overflow", layer: rawTar(
			rawPAX("size", "9223372036854775807"), rawHeader(tar.TypeDir, "a", 0),
			rawPAX("size", "9223372036854775807"), rawHeader(tar.TypeDir, "b", 0)), want: `entry 1, "b"`, is: ErrMalformed},
		{name: "endless sparse file", layer: rawTar(rawPAX("GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.numblocks", "0",
			"GNU.sparse.map", "", "GNU.sparse.size", "9223372036854775807"), rawHeader(tar.TypeReg, "hole", 0)), want: `"hole"`, is: ErrMalformed},
		{name: "truncated header", layer: rawHeader(tar.TypeReg, "f", 0)[:300], want: "entry 0", is: io.ErrUnexpectedEOF},
		{name: "truncated extended header", layer: rawPAX("path", strings.Repeat("p", 2000))[:1024], want: "entry 0", is: io.ErrUnexpectedEOF},
		{name: "large extended header", layer: rawTar(rawPAX("comment", strings.Repeat("c", 1<<20)), rawHeader(tar.TypeReg, "f", 0)), want: "entry 0", is: tar.ErrFieldTooLong},
		{name: "many attributes", layer: rawTar(rawPAX(manyXattrs(5000)...), rawHeader(tar.TypeReg, "f", 0)), want: `"f"`, is: ErrMalformed},
		{name: "large attribute", layer: tarOf(t, file("f", "").xattr("user.x", strings.Repeat("x", 70_000))), want: `"f"`, is: unix.E2BIG},
		{name: "malformed ACL", layer: tarOf(t, file("f", "").xattr(aclAccess, "?")), want: `"f"`, is: nil},
		{name: "global header", layer: rawTar(append(globalPAX("path", "../victim/secret"), rawHeader(tar.TypeReg, "f", 0)...))},
		{name: "global header with the name of a file", layer: rawTar(rawHeader(tar.TypeReg, "x", 0), globalPAX("comment", "x"), rawHeader(tar.TypeReg, "f", 0)),
			listing: []string{"d/", "evil -> ../victim", "f = ", "x = "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, workers := range []int{1, 3} {
				root, check := playground(t)
				_, err := Apply(t.Context(), root, bytes.NewReader(tt.layer), ApplyOptions{Workers: workers})
				check(t)
				if tt.want == "" && err != nil {
					t.Errorf("%v", err)
				}
				if tt.want != "" {
					var entry *EntryError
					require.ErrorAs(t, err, &entry)
					assert.ErrorContains(t, err, tt.want)
				}
				if tt.is != nil {
					assert.ErrorIs(t, err, tt.is)
				}
				if err != nil {
					assert.Less(t, len(err.Error()), 2000, "a message is of bounded length")
				}
				if tt.listing != nil {
					var got []string
					for _, line := range listing(t, root) {
						if !strings.HasPrefix(line, "evilabs") {
							got = append(got, line)
						}
					}
					assert.Equal(t, tt.listing, got)
				}
				assert.NoError(t, os.RemoveAll(root), "the layer can be removed")
			}
		})
	}
}

func manyXattrs(n int) []string {
	var kv []string
	for i := range n {
		kv = append(kv, fmt.Sprintf("SCHILY.xattr.user.%08d", i), "x")
	}
	return kv
}

// globalPAX makes a global extended header, which has the name x.
func globalPAX(kv ...string) []byte {
	b := rawPAX(kv...)
	copy(b, "x\x00")
	b[156] = tar.TypeXGlobalHeader
	sum(b[:blockSize])
	return b
}

// forever repeats a tar of one part without end, counting.
type forever struct {
	part []byte
	read int64
	off  int
}

func (f *forever) Read(p []byte) (int, error) {
	n := copy(p, f.part[f.off:])
	f.off = (f.off + n) % len(f.part)
	f.read += int64(n)
	return n, nil
}

// TestApplyEndlessHeaders feeds headers that only ever announce another header.
func TestApplyEndlessHeaders(t *testing.T) {
	testfs.CheckLeaks(t)
	var manyRecords []string
	for i := range 60_000 {
		manyRecords = append(manyRecords, fmt.Sprintf("x.%d", i), "v")
	}
	longLink := append(rawHeader(tar.TypeGNULongName, "x", 1000), rawData(strings.Repeat("n", 1000))...)
	for name, part := range map[string][]byte{"extended": rawPAX("comment", "x"), "full of records": rawPAX(manyRecords...), "long names": longLink} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			in := &forever{part: part}
			_, err := Apply(t.Context(), t.TempDir(), in, ApplyOptions{})
			require.ErrorIs(t, err, ErrMalformed)
			require.ErrorContains(t, err, "entry 0")
			assert.Less(t, in.read, int64(2*maxHeader))
			runtime.GC()
			runtime.ReadMemStats(&after)
			assert.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(64<<20))
		})
	}
}

// TestApplyBomb applies data compressed to a thousandth, with a bound.
func TestApplyBomb(t *testing.T) {
	testfs.CheckLeaks(t)
	for _, format := range []Format{Gzip, Zstd} {
		var packed bytes.Buffer
		zw, err := Compress(&packed, format, 0)
		require.NoError(t, err)
		_, err = zw.Write(rawHeader(tar.TypeReg, "fits", 0))
		require.NoError(t, err)
		_, err = zw.Write(rawHeader(tar.TypeReg, "bomb", 1<<40))
		require.NoError(t, err)
		for range 64 {
			_, err = zw.Write(make([]byte, 1<<20))
			require.NoError(t, err)
		}
		require.NoError(t, zw.Close())
		assert.Less(t, packed.Len(), 1<<20)

		r, _, err := Decompress(&packed)
		require.NoError(t, err)
		_, err = Apply(t.Context(), t.TempDir(), r, ApplyOptions{MaxBytes: 1 << 30})
		require.ErrorIs(t, err, ErrTooLarge)
		require.ErrorContains(t, err, `entry 1, "bomb"`)
		require.NoError(t, r.Close())
	}
}

// endless is a file that does not end, and cancels after some bytes.
type endless struct {
	header []byte
	left   int
	cancel context.CancelFunc
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.header) > 0 {
		n := copy(p, e.header)
		e.header = e.header[n:]
		return n, nil
	}
	if e.left -= len(p); e.left < 0 {
		e.cancel()
	}
	for i := range p {
		p[i] = byte(i) | 1
	}
	return len(p), nil
}

func TestApplyCancel(t *testing.T) {
	for _, tt := range []struct {
		name   string
		header []byte
		left   int
	}{
		{"before", nil, 0},
		{"in a large file", rawHeader(tar.TypeReg, "large", 1<<40), 10 << 20},
		{"in the first chunk", rawHeader(tar.TypeReg, "large", 1<<40), 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			ctx, cancel := context.WithCancel(t.Context())
			if tt.header == nil {
				cancel()
			}
			_, err := Apply(ctx, t.TempDir(), &endless{tt.header, tt.left, cancel}, ApplyOptions{Workers: 2})
			require.ErrorIs(t, err, context.Canceled)
			cancel()
		})
	}
	t.Run("between files", func(t *testing.T) {
		testfs.CheckLeaks(t)
		dir := t.TempDir()
		cause := errors.New("the user has changed their mind")
		ctx, cancel := context.WithCancelCause(t.Context())
		small := append(rawHeader(tar.TypeReg, "small", 3), rawData("abc")...)
		in := &forever{part: small}
		time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
		_, err := Apply(ctx, dir, in, ApplyOptions{Workers: 3})
		require.ErrorIs(t, err, cause)
	})
}

// TestApplyReadError has the input fail at every block in turn.
func TestApplyReadError(t *testing.T) {
	testfs.CheckLeaks(t)
	layer := tarOf(t, folder("d"), file("d/f", strings.Repeat("x", 3000)), hardlink("h", "d/f"), file("large", strings.Repeat("x", 2<<20)), file("g", "1"))
	boom := errors.New("boom")
	for n := 0; n < len(layer)-2*blockSize; n += 1 + min(n, 40_000) {
		r := io.MultiReader(bytes.NewReader(layer[:n]), errReader{boom})
		_, err := Apply(t.Context(), t.TempDir(), r, ApplyOptions{Workers: 2})
		require.ErrorIs(t, err, boom, "%d", n)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestApplyFirstError has several entries fail, and expects the error of the first.
func TestApplyFirstError(t *testing.T) {
	var entries []ent
	for i := range 200 {
		entries = append(entries, file(fmt.Sprintf("f%d", i), "x"))
	}
	for range 20 {
		sub := t.TempDir()
		must(t, os.WriteFile(filepath.Join(sub, "f10"), nil, 0o644))
		must(t, os.WriteFile(filepath.Join(sub, "f12"), nil, 0o644))
		_, err := Apply(t.Context(), sub, bytes.NewReader(tarOf(t, entries...)), ApplyOptions{Empty: true, Workers: 2})
		require.ErrorIs(t, err, unix.EEXIST)
		require.ErrorContains(t, err, `entry 10, "f10"`)
	}
}

// TestApplyLimit runs into the end of a filesystem.
func TestApplyLimit(t *testing.T) {
	dir := testfs.Btrfs(t, testfs.WithSize(256<<20))
	testfs.CheckLeaks(t)
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(i*i>>3) ^ byte(i)
	}
	pr, pw := io.Pipe()
	defer pr.Close()
	go func() {
		tw := tar.NewWriter(pw)
		for i := 0; ; i++ {
			if tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("f%d", i), Size: int64(len(noise))}) != nil {
				return
			}
			if _, err := tw.Write(noise); err != nil {
				return
			}
		}
	}()
	_, err := Apply(t.Context(), dir, pr, ApplyOptions{})
	require.ErrorIs(t, err, unix.ENOSPC)
	var entry *EntryError
	require.ErrorAs(t, err, &entry)
	assert.NotEmpty(t, entry.Name)
}
