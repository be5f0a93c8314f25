package layertar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treeat"
)

func TestApply(t *testing.T) {
	for _, tt := range []struct {
		name   string
		lower  []ent
		layer  []ent
		want   []string
		goArch bool // go-archive makes the same of it
	}{
		{
			name:   "one of each",
			layer:  []ent{folder("d"), file("d/f", "1"), symlink("d/s", "f"), hardlink("h", "d/f"), fifo("p")},
			want:   []string{"d/", "d/f = 1", "d/s -> f", "h = 1", "p |"},
			goArch: true,
		},
		{
			name:   "missing parents are made",
			layer:  []ent{file("a/b/c", "1")},
			want:   []string{"a/", "a/b/", "a/b/c = 1"},
			goArch: true,
		},
		{
			name:   "root entries are skipped",
			layer:  []ent{folder("."), file("./f", "1"), symlink("/", "elsewhere")},
			want:   []string{"f = 1"},
			goArch: true,
		},
		{
			name:   "absolute and unclean names",
			layer:  []ent{file("/abs", "1"), file("a//b/./c", "2"), file("x/../y", "3")},
			want:   []string{"a/", "a/b/", "a/b/c = 2", "abs = 1", "y = 3"},
			goArch: true,
		},
		{
			name:   "files replace files, links and directories",
			lower:  []ent{file("f", "old"), symlink("s", "f"), file("d/x", "old"), fifo("p")},
			layer:  []ent{file("f", "new"), file("s", "new"), file("d", "new"), file("p", "new")},
			want:   []string{"d = new", "f = new", "p = new", "s = new"},
			goArch: true,
		},
		{
			name:   "directories replace all but directories",
			lower:  []ent{file("f", "old"), symlink("s", "d"), file("d/x", "old")},
			layer:  []ent{folder("f"), folder("s"), folder("d"), file("s/y", "new")},
			want:   []string{"d/", "d/x = old", "f/", "s/", "s/y = new"},
			goArch: true,
		},
		{
			name:   "links replace",
			lower:  []ent{file("f", "old"), file("d/x", "old"), file("t", "t")},
			layer:  []ent{symlink("f", "t"), hardlink("d", "t")},
			want:   []string{"d = t", "f -> t", "t = t"},
			goArch: true,
		},
		{
			name:   "replacing one of several links leaves the others",
			lower:  []ent{file("a", "old"), hardlink("b", "a")},
			layer:  []ent{file("a", "new")},
			want:   []string{"a = new", "b = old"},
			goArch: true,
		},
		{
			name:   "duplicates: the last one wins",
			layer:  []ent{file("f", "1"), file("f", "2"), symlink("s", "a"), symlink("s", "b"), folder("x"), file("x", "3"), file("y", "4"), folder("y")},
			want:   []string{"f = 2", "s -> b", "x = 3", "y/"},
			goArch: true,
		},
		{
			name:   "whiteouts",
			lower:  []ent{file("f", "old"), file("d/x", "old"), file("d/y", "old"), symlink("s", "d")},
			layer:  []ent{file(".wh.f", ""), file("d/.wh.x", ""), file(".wh.s", ""), file(".wh.never", "")},
			want:   []string{"d/", "d/y = old"},
			goArch: true,
		},
		{
			name:   "a whiteout of a directory",
			lower:  []ent{file("d/e/x", "old"), file("g", "old")},
			layer:  []ent{file(".wh.d", "")},
			want:   []string{"g = old"},
			goArch: true,
		},
		{
			name:   "a whiteout takes what the layer itself wrote",
			layer:  []ent{file("f", "new"), file(".wh.f", ""), file("d/x", "new"), file(".wh.d", ""), file("d/y", "newer")},
			want:   []string{"d/", "d/y = newer"},
			goArch: true,
		},
		{
			name:   "a whiteout below nothing makes parents",
			layer:  []ent{file("d/.wh.x", "")},
			want:   []string{"d/"},
			goArch: true,
		},
		{
			name:   "an opaque marker before",
			lower:  []ent{file("d/x", "old"), file("d/e/y", "old")},
			layer:  []ent{folder("d"), file("d/.wh..wh..opq", ""), file("d/z", "new")},
			want:   []string{"d/", "d/z = new"},
			goArch: true,
		},
		{
			name:   "an opaque marker after",
			lower:  []ent{file("d/x", "old"), file("d/z", "old"), file("d/e/y", "old"), file("d/e/v", "old")},
			layer:  []ent{folder("d"), file("d/z", "new"), folder("d/e"), file("d/e/v", "new"), file("d/.wh..wh..opq", "")},
			want:   []string{"d/", "d/e/", "d/e/v = new", "d/z = new"},
			goArch: true,
		},
		{
			name:   "an opaque marker keeps implied directories",
			lower:  []ent{file("d/e/y", "old"), file("d/n/y", "old")},
			layer:  []ent{file("d/e/v", "new"), file("d/n/m/v", "new"), file("d/.wh..wh..opq", ""), file("d/e/w", "newer")},
			want:   []string{"d/", "d/e/", "d/e/v = new", "d/e/w = newer", "d/n/", "d/n/m/", "d/n/m/v = new"},
			goArch: false, // removes d/e and d/n
		},
		{
			name:   "an opaque marker at the root",
			lower:  []ent{file("x", "old"), file("d/y", "old")},
			layer:  []ent{file("z", "new"), file(".wh..wh..opq", ""), file("x2", "new")},
			want:   []string{"x2 = new", "z = new"},
			goArch: true,
		},
		{
			name:   "an opaque marker through a symbolic link",
			lower:  []ent{file("d/x", "old"), symlink("s", "d")},
			layer:  []ent{file("s/.wh..wh..opq", ""), file("s/y", "new")},
			want:   []string{"d/", "d/y = new", "s -> d"},
			goArch: true,
		},
		{
			name:   "aufs metadata at the root is skipped",
			layer:  []ent{file(".wh..wh.aufs", ""), folder(".wh..wh.orph"), file(".wh..wh.orph/x", ""), file("f", "1")},
			want:   []string{"f = 1"},
			goArch: true,
		},
		{
			name:   "aufs hard links are copies",
			layer:  []ent{folder(".wh..wh.plnk"), file(".wh..wh.plnk/12.34", "data"), hardlink("f", ".wh..wh.plnk/12.34"), hardlink("d/g", "/.wh..wh.plnk/12.34")},
			want:   []string{"d/", "d/g = data", "f = data"},
			goArch: false, // does not know the second form
		},
		{
			name:   "below a directory, .wh..wh. is a whiteout of .wh.",
			lower:  []ent{file("d/x", "old")},
			layer:  []ent{file("d/.wh..wh.plnk", "")},
			want:   []string{"d/", "d/x = old"},
			goArch: true,
		},
		{
			name:   "parents through symbolic links",
			lower:  []ent{folder("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr"), symlink("up", "usr/../usr/lib/..")},
			layer:  []ent{file("lib/a", "1"), file("abs/b", "2"), file("up/c", "3"), file("abs/lib/d", "4")},
			want:   []string{"abs -> /usr", "lib -> usr/lib", "up -> usr/../usr/lib/..", "usr/", "usr/b = 2", "usr/c = 3", "usr/lib/", "usr/lib/a = 1", "usr/lib/d = 4"},
			goArch: true,
		},
		{
			name:   "parents through dangling links are made",
			lower:  []ent{symlink("lib", "/usr/lib")},
			layer:  []ent{file("lib/x/a", "1")},
			want:   []string{"lib -> /usr/lib", "usr/", "usr/lib/", "usr/lib/x/", "usr/lib/x/a = 1"},
			goArch: true,
		},
		{
			name:   "links out of the root end at the root",
			lower:  []ent{symlink("out", "../../../.."), symlink("oops", "/../../in")},
			layer:  []ent{file("out/f", "1"), file("oops/g", "2")},
			want:   []string{"f = 1", "in/", "in/g = 2", "oops -> /../../in", "out -> ../../../.."},
			goArch: false, // refuses, outside its chroot
		},
		{
			name:   "a directory swapped for a link in between",
			layer:  []ent{folder("a"), file("a/x", "1"), folder("b"), symlink("a", "b"), file("a/y", "2")},
			want:   []string{"a -> b", "b/", "b/y = 2"},
			goArch: true,
		},
		{
			name:   "a link swapped for a directory in between",
			lower:  []ent{symlink("a", "b"), folder("b")},
			layer:  []ent{file("a/x", "1"), folder("a"), file("a/y", "2")},
			want:   []string{"a/", "a/y = 2", "b/", "b/x = 1"},
			goArch: true,
		},
		{
			name:   "a link swapped for another in between",
			lower:  []ent{symlink("a", "b"), folder("b"), folder("c")},
			layer:  []ent{file("a/x", "1"), symlink("a", "c"), file("a/y", "2")},
			want:   []string{"a -> c", "b/", "b/x = 1", "c/", "c/y = 2"},
			goArch: true,
		},
		{
			name:   "hard links resolve their parents, not themselves",
			lower:  []ent{file("usr/f", "1"), symlink("u", "/usr"), symlink("s", "usr/f")},
			layer:  []ent{hardlink("h", "u/f"), hardlink("k", "/usr/f"), hardlink("t", "s")},
			want:   []string{"h = 1", "k = 1", "s -> usr/f", "t -> usr/f", "u -> /usr", "usr/", "usr/f = 1"},
			goArch: true,
		},
		{
			name:   "hard link to what the same layer replaced",
			lower:  []ent{file("f", "old")},
			layer:  []ent{hardlink("before", "f"), file("f", "new"), hardlink("after", "f")},
			want:   []string{"after = new", "before = old", "f = new"},
			goArch: true,
		},
		{
			name:   "old directory entries: a slash at the end",
			layer:  []ent{file("d/", "").with(func(h *tar.Header) { h.Typeflag = '\x00' })},
			want:   []string{"d/"},
			goArch: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, opts := range []ApplyOptions{{}, {Workers: 1}, {Workers: 3}, {Empty: true}} {
				if opts.Empty && len(tt.lower) > 0 {
					continue
				}
				dir := t.TempDir()
				apply(t, dir, tarOf(t, tt.lower...), ApplyOptions{Empty: true})
				apply(t, dir, tarOf(t, tt.layer...), opts)
				assert.Equal(t, tt.want, listing(t, dir), "%+v", opts)
			}
			dir := t.TempDir()
			apply(t, dir, tarOf(t, tt.lower...), ApplyOptions{Empty: true})
			_, err := archive.UnpackLayer(dir, bytes.NewReader(tarOf(t, tt.layer...)), &archive.TarOptions{})
			if tt.goArch {
				require.NoError(t, err)
				assert.Equal(t, tt.want, listing(t, dir), "go-archive")
			} else {
				assert.True(t, err != nil || !assert.ObjectsAreEqual(tt.want, listing(t, dir)), "go-archive does the same by now")
			}
		})
	}
}

func TestApplySize(t *testing.T) {
	layer := tarOf(t, file("f", "12345"), file(".wh.g", "678"), folder("d"), file(".wh..wh.aufs", "90"), hardlink("h", "f"))
	assert.EqualValues(t, 10, apply(t, t.TempDir(), layer, ApplyOptions{}))

	_, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(layer), ApplyOptions{MaxBytes: 7})
	require.ErrorIs(t, err, ErrTooLarge)
	require.ErrorContains(t, err, `entry 1, ".wh.g"`)
	apply(t, t.TempDir(), layer, ApplyOptions{MaxBytes: 10})
}

// stat describes a file of a test.
func stat(t *testing.T, elem ...string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(filepath.Join(elem...), &st))
	return st
}

func TestApplyModes(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		t.Run(fmt.Sprintf("umask %#o", umask), func(t *testing.T) {
			dir := t.TempDir()
			old := unix.Umask(umask)
			defer unix.Umask(old)
			apply(t, dir, tarOf(t,
				file("f", "1").mode(0o666), file("suid", "1").mode(0o6755), file("none", "1").mode(0),
				folder("tmp").mode(0o1777), folder("sgid").mode(0o2775), file("sgid/f", "1").mode(0o644), folder("sgid/d").mode(0o700),
				fifo("p").mode(0o622), hardlink("h", "f").mode(0o640), file("implied/f", ""),
			), ApplyOptions{})
			for name, want := range map[string]uint32{
				"f": 0o640, "suid": 0o6755, "none": 0, "tmp": 0o1777, "sgid": 0o2775, "sgid/f": 0o644, "sgid/d": 0o700,
				"p": 0o622, "h": 0o640, "implied": 0o755,
			} {
				assert.Equal(t, want, stat(t, dir, name).Mode&modeMask, "%s", name)
			}
		})
	}
}

func TestChmodByFD(t *testing.T) {
	dir := t.TempDir()
	at, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(at)
	must(t, unix.Mkfifo(filepath.Join(dir, "p"), 0o600))
	must(t, os.Symlink("p", filepath.Join(dir, "s")))
	require.NoError(t, treeat.ChmodByFD(at, "p", 0o4750))
	assert.EqualValues(t, 0o4750, stat(t, dir, "p").Mode&modeMask)
	require.Error(t, treeat.ChmodByFD(at, "s", 0o777))
	require.Error(t, treeat.Chmod(at, "s", 0o777))
	assert.EqualValues(t, 0o4750, stat(t, dir, "p").Mode&modeMask, "the link was not followed")
}

func TestApplyOwners(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	apply(t, dir, tarOf(t,
		file("f", "1").owner(1, 2).mode(0o4755), folder("d").owner(3, 4).mode(0o2755), file("d/f", "1").owner(5, 6), file("d/g", "1").owner(5, 4),
		symlink("s", "f").owner(7, 8), fifo("p").owner(9, 10).mode(0o6700), file("sub/f", "1").owner(4_294_967_294, 11),
	), ApplyOptions{})
	for name, want := range map[string][2]uint32{
		"f": {1, 2}, "d": {3, 4}, "d/f": {5, 6}, "d/g": {5, 4}, "s": {7, 8}, "p": {9, 10}, "sub": {0, 0}, "sub/f": {4_294_967_294, 11},
	} {
		st := stat(t, dir, name)
		assert.Equal(t, want, [2]uint32{st.Uid, st.Gid}, "%s", name)
	}
	assert.EqualValues(t, 0o4755, stat(t, dir, "f").Mode&modeMask, "chown takes setuid away, so it comes first")
	assert.EqualValues(t, 0o6700, stat(t, dir, "p").Mode&modeMask)
}

func TestApplyIDMap(t *testing.T) {
	testfs.Root(t)
	ids := user.IdentityMapping{
		UIDMaps: []user.IDMap{{ID: 0, ParentID: 100_000, Count: 1000}},
		GIDMaps: []user.IDMap{{ID: 0, ParentID: 200_000, Count: 1000}},
	}
	dir := t.TempDir()
	root := file("implied/f", "").with(func(h *tar.Header) { h.Uid, h.Gid = 0, 0 })
	apply(t, dir, tarOf(t, root, file("g", "").owner(5, 6)), ApplyOptions{IDMap: ids})
	for name, want := range map[string][2]uint32{"implied": {100_000, 200_000}, "implied/f": {100_000, 200_000}, "g": {100_005, 200_006}} {
		st := stat(t, dir, name)
		assert.Equal(t, want, [2]uint32{st.Uid, st.Gid}, "%s", name)
	}

	back, _ := headers(t, write(t, dir, all(t, dir), WriteOptions{IDMap: ids}))
	require.Equal(t, "g", back[0].Name)
	assert.Equal(t, [2]int{5, 6}, [2]int{back[0].Uid, back[0].Gid})

	_, err := Apply(t.Context(), dir, bytes.NewReader(tarOf(t, file("bad", "").owner(5000, 5))), ApplyOptions{IDMap: ids})
	require.ErrorContains(t, err, "5000")
	require.ErrorContains(t, err, `"bad"`)
	require.NoError(t, os.Lchown(filepath.Join(dir, "g"), 1, 1))
	require.ErrorContains(t, Write(t.Context(), &bytes.Buffer{}, dir, all(t, dir), WriteOptions{IDMap: ids}), `"/g"`)
}

func TestApplyTimes(t *testing.T) {
	odd := time.Unix(1_400_000_000, 123_456_789)
	dir := t.TempDir()
	layer := tarOf(t,
		folder("d").time(past), file("f", "1").time(odd), symlink("s", "f").time(odd), fifo("p").time(odd),
		file("d/f", "1"), file("d/.wh.x", ""), folder("d/e").time(odd), hardlink("d/e/h", "f").time(odd.Add(time.Hour)),
		file("before", "").time(time.Unix(-5, 0)), file("after", "").time(time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)),
		file("access", "").with(func(h *tar.Header) { h.AccessTime = past.Add(time.Hour) }),
		file("d/later", "1"),
	)
	apply(t, dir, layer, ApplyOptions{})
	linked := odd.Add(time.Hour)
	for name, want := range map[string]time.Time{
		"d": past, "f": linked, "s": odd, "p": odd, "d/f": past, "d/e": odd, "d/e/h": linked,
		"before": time.Unix(0, 0), "after": time.Unix(0, 0), "access": past,
	} {
		st := stat(t, dir, name)
		assert.Equal(t, want.UTC(), time.Unix(st.Mtim.Unix()).UTC(), "%s", name)
	}
	assert.EqualValues(t, past.Unix()+3600, stat(t, dir, "access").Atim.Sec)

	// A layer on top changes a directory with an entry, and a directory without.
	apply(t, dir, tarOf(t, folder("d").time(odd), file("d/f", "2")), ApplyOptions{})
	assert.EqualValues(t, odd.Unix(), stat(t, dir, "d").Mtim.Sec)
}

func TestApplyXattrs(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep
	var log bytes.Buffer
	apply(t, dir, tarOf(t,
		file("f", "1").xattr("security.capability", caps).xattr("user.a", "1").xattr("user.b", "").owner(3, 3).mode(0o755),
		folder("d").xattr("user.d", "2").xattr("trusted.d", "3"), symlink("s", "f").xattr("trusted.s", "4"),
		fifo("p").xattr("user.p", "not on a fifo").xattr("trusted.p", "5"), hardlink("h", "f").xattr("user.h", "6").owner(3, 3).mode(0o755),
	), ApplyOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	get := func(name, attr string) string {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(dir, name), attr, buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:n])
	}
	assert.Equal(t, caps, get("f", "security.capability"), "chown and write take it away, so they come first")
	assert.Equal(t, "1", get("f", "user.a"))
	assert.Empty(t, get("f", "user.b"))
	assert.Equal(t, "6", get("f", "user.h"))
	assert.Equal(t, "2", get("d", "user.d"))
	assert.Equal(t, "3", get("d", "trusted.d"))
	assert.Equal(t, "4", get("s", "trusted.s"))
	assert.Equal(t, "5", get("p", "trusted.p"))
	assert.Contains(t, log.String(), "count=1")
	assert.Contains(t, log.String(), "user.p")

}

// TestApplyXattrsLeftOut applies layers with attributes that no filesystem of Linux can store. They are an error by
// default, and left out with a count on request. An attribute that the filesystem could store is an error in any
// case.
func TestApplyXattrsLeftOut(t *testing.T) {
	testfs.Root(t)
	ids := user.IdentityMapping{UIDMaps: []user.IDMap{{ID: 0, ParentID: 1000, Count: 10}}, GIDMaps: []user.IDMap{{ID: 0, ParentID: 1000, Count: 10}}}
	ofFile := func(name string) []byte {
		layer, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		return layer
	}
	for name, test := range map[string]struct {
		layer []byte
		opts  ApplyOptions
		want  string // in the log; "" if it is an error with best effort, too
		is    error
	}{
		"of macOS":            {layer: ofFile("apple-xattr.tar"), want: "com.apple.", is: unix.ENOTSUP},
		"of NFS":              {layer: ofFile("nfs4-xattr.tar"), want: "system.nfs4_acl", is: unix.ENOTSUP},
		"unknown":             {layer: tarOf(t, file("f", "").xattr("nosuch.space", "1")), want: "nosuch.space", is: unix.ENOTSUP},
		"of a link":           {layer: tarOf(t, symlink("f", "x").xattr(aclAccess, acl(7))), want: aclAccess, is: unix.ENOTSUP},
		"malformed ACL":       {layer: tarOf(t, file("f", "").xattr(aclAccess, "\x02\x00\x00\x00?")), want: aclAccess, is: unix.EINVAL},
		"malformed default":   {layer: tarOf(t, folder("d").xattr(aclDefault, "\x02\x00\x00\x00?"), file("d/f", "")), want: aclDefault, is: unix.EINVAL},
		"ACL of no version":   {layer: tarOf(t, file("f", "").xattr(aclAccess, "?")), want: aclAccess, is: unix.EINVAL},
		"malformed, mapped":   {layer: tarOf(t, file("f", "").xattr(aclAccess, "?")), opts: ApplyOptions{IDMap: ids}, want: aclAccess, is: ErrMalformed},
		"default of a file":   {layer: tarOf(t, file("f", "").xattr(aclDefault, acl(7))), want: aclDefault, is: unix.EACCES},
		"malformed program":   {layer: tarOf(t, file("f", "").xattr(capability, "?")), is: unix.EINVAL},
		"too long":            {layer: tarOf(t, file("f", "").xattr("user.x", strings.Repeat("x", 70_000))), is: unix.E2BIG},
		"ACL of who is none":  {layer: tarOf(t, file("f", "").xattr(aclAccess, acl(70))), opts: ApplyOptions{IDMap: ids}},
		"two of what is none": {layer: tarOf(t, file("f", "").xattr("a.b", "1").xattr("c.d", "2").xattr("user.x", "3")), want: "count=2", is: unix.ENOTSUP},
	} {
		t.Run(name, func(t *testing.T) {
			opts := test.opts
			_, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(test.layer), opts)
			require.Error(t, err)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
			var log bytes.Buffer
			opts.Xattrs, opts.Logger = SupportedXattrs, slog.New(slog.NewTextHandler(&log, nil))
			_, err = Apply(t.Context(), t.TempDir(), bytes.NewReader(test.layer), opts)
			if test.want == "" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			assert.Contains(t, log.String(), test.want)
			assert.Equal(t, 1, strings.Count(log.String(), "WARN"), "one line for a layer")
		})
	}
}

// TestLeavesOut asserts the rule for errors that cannot be produced everywhere.
func TestLeavesOut(t *testing.T) {
	for _, p := range []XattrPolicy{ExactXattrs, SupportedXattrs, BestEffortXattrs} {
		assert.True(t, p.leavesOut("user.a", unix.S_IFIFO, unix.EPERM))
		assert.Equal(t, p == BestEffortXattrs, p.leavesOut("user.a", unix.S_IFREG, unix.EPERM), "it is immutable, say")
		assert.Equal(t, p == BestEffortXattrs, p.leavesOut("trusted.a", unix.S_IFREG, unix.EPERM), "in a user namespace")
		assert.Equal(t, p == BestEffortXattrs, p.leavesOut("security.a", unix.S_IFREG, unix.EACCES), "a security module refuses it")
		assert.Equal(t, p != ExactXattrs, p.leavesOut(capability, unix.S_IFREG, unix.ENOTSUP))
		for _, err := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO} {
			assert.False(t, p.leavesOut("user.a", unix.S_IFREG, err))
		}
	}

	var log bytes.Buffer
	var s setter
	s.leaveOut("ping", capability, unix.ENOTSUP)
	s.report(slog.New(slog.NewTextHandler(&log, nil)))
	assert.Contains(t, log.String(), `first="\"ping\""`, "never silently")
}

// acl makes a POSIX ACL: permissions of the owner, of a named user, the group, the mask, and others.
func acl(uid uint32) string {
	b := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, 6, uid}, {4, 5, 1<<32 - 1}, {0x10, 7, 1<<32 - 1}, {0x20, 4, 1<<32 - 1}} {
		b = append(b, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return string(b)
}

func TestApplyACLs(t *testing.T) {
	testfs.Root(t)
	dir := testfs.Btrfs(t)
	has := func(name, attr string) string {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(dir, name), attr, buf)
		if err != nil {
			return "none"
		}
		return string(buf[:n])
	}
	apply(t, dir, tarOf(t,
		folder("d").mode(0o775).xattr(aclDefault, acl(7)), file("d/plain", "1").mode(0o664), file("d/own", "1").mode(0o774).xattr(aclAccess, acl(8)),
		folder("d/sub"), fifo("d/p"),
	), ApplyOptions{Empty: true})
	apply(t, dir, tarOf(t, file("d/upper", "1").mode(0o664), folder("d/sub2").mode(0o770), fifo("d/p2"), file("d/sub/f", "1")), ApplyOptions{})
	assert.Equal(t, acl(7), has("d", aclDefault))
	assert.Equal(t, acl(8), has("d/own", aclAccess))
	for _, name := range []string{"d", "d/plain", "d/sub", "d/p", "d/upper", "d/sub2", "d/p2", "d/sub/f"} {
		assert.Equal(t, "none", has(name, aclAccess), "%s", name)
		if name != "d" {
			assert.Equal(t, "none", has(name, aclDefault), "%s", name)
		}
	}
	assert.EqualValues(t, 0o664, stat(t, dir, "d/upper").Mode&modeMask)
	assert.EqualValues(t, 0o774, stat(t, dir, "d/own").Mode&modeMask)

	ids := user.IdentityMapping{UIDMaps: []user.IDMap{{ID: 0, ParentID: 1000, Count: 100}}, GIDMaps: []user.IDMap{{ID: 0, ParentID: 1000, Count: 100}}}
	apply(t, dir, tarOf(t, file("mapped", "1").owner(1, 1).mode(0o774).xattr(aclAccess, acl(8))), ApplyOptions{IDMap: ids})
	assert.Equal(t, acl(1008), has("mapped", aclAccess))
	hdrs, _ := headers(t, write(t, dir, []archive.Change{{Path: "/mapped"}}, WriteOptions{IDMap: ids}))
	assert.Equal(t, acl(8), hdrs[0].PAXRecords[paxXattr+aclAccess])
}

func TestApplyData(t *testing.T) {
	dir := t.TempDir()
	var entries []ent
	want := make(map[string]string)
	for _, size := range []int{0, 1, 511, 512, 513, smallFile - 1, smallFile, smallFile + 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 12345, 5 * chunkBytes} {
		name := fmt.Sprintf("d/%d", size)
		want[name] = strings.Repeat(name+".", size/len(name)+1)[:size]
		entries = append(entries, file(name, want[name]))
	}
	for _, workers := range []int{1, 4} {
		apply(t, dir, tarOf(t, entries...), ApplyOptions{Workers: workers})
		for name, data := range want {
			got, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			assert.True(t, data == string(got), "%s", name)
		}
	}
}

func TestApplyHoles(t *testing.T) {
	dir := testfs.Btrfs(t)
	hole := strings.Repeat("\x00", 4<<20)
	ends := "begin" + hole + "end"
	apply(t, dir, tarOf(t,
		file("middle", ends), file("all", hole), file("tail", "begin"+hole), file("small", hole[:smallFile]),
	), ApplyOptions{})
	sparse := rawTar(
		rawPAX("GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.numblocks", "1",
			"GNU.sparse.map", "1048576,4", "GNU.sparse.size", "1073741824"),
		rawHeader(tar.TypeReg, "sparse", 4), rawData("data"))
	assert.EqualValues(t, 1<<30, apply(t, dir, sparse, ApplyOptions{}))
	testfs.Sync(t, dir)
	for name, want := range map[string]string{"middle": ends, "all": hole, "tail": "begin" + hole, "small": hole[:smallFile]} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.True(t, want == string(got), "%s", name)
		assert.LessOrEqual(t, stat(t, dir, name).Blocks*512, int64(256<<10), "%s", name)
	}
	st := stat(t, dir, "sparse")
	assert.EqualValues(t, 1<<30, st.Size)
	assert.LessOrEqual(t, st.Blocks*512, int64(256<<10))
	f, err := os.Open(filepath.Join(dir, "sparse"))
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, 6)
	_, err = f.ReadAt(buf, 1048575)
	require.NoError(t, err)
	assert.Equal(t, "\x00data\x00", string(buf))
}

func TestApplyDevices(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	apply(t, dir, tarOf(t,
		ent{Header: tar.Header{Typeflag: tar.TypeChar, Name: "c", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		ent{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "b", Mode: 0o640, Devmajor: 259, Devminor: 70000}},
	), ApplyOptions{})
	c, b := stat(t, dir, "c"), stat(t, dir, "b")
	assert.Equal(t, []uint32{unix.S_IFCHR | 0o666, unix.S_IFBLK | 0o640}, []uint32{c.Mode, b.Mode})
	assert.Equal(t, []uint64{unix.Mkdev(1, 3), unix.Mkdev(259, 70000)}, []uint64{c.Rdev, b.Rdev})
}

func TestApplyDeep(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	deep := strings.Repeat("directory/", 1000) + "f"
	apply(t, dir, tarOf(t, file(deep, "1"), hardlink("directory/h", deep), file(strings.Repeat("directory/", 600)+"g", "2"), folder(strings.Repeat("directory/", 700)+"x")), ApplyOptions{})
	got, err := os.ReadFile(filepath.Join(dir, "directory/h"))
	require.NoError(t, err)
	assert.Equal(t, "1", string(got))
	layer := write(t, dir, []archive.Change{{Path: "/" + deep}, {Path: "/directory"}}, WriteOptions{})
	hdrs, data := headers(t, layer)
	require.Len(t, hdrs, 2)
	assert.Equal(t, "1", data[deep])

	apply(t, dir, tarOf(t, file(".wh.directory", "")), ApplyOptions{})
	assert.Empty(t, listing(t, dir))
}

func TestApplyManyDirectories(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	var entries []ent
	for round := range 2 {
		for i := range 2 * maxOpenDirs {
			entries = append(entries, file(fmt.Sprintf("d%d/e%d/f%d", i%7, i, round), "1"))
		}
	}
	apply(t, dir, tarOf(t, entries...), ApplyOptions{})
	for _, e := range entries {
		assert.EqualValues(t, 1, stat(t, dir, e.Name).Size)
	}
}

func TestApplyErrors(t *testing.T) {
	testfs.CheckLeaks(t)
	_, err := Apply(t.Context(), filepath.Join(t.TempDir(), "missing"), bytes.NewReader(nil), ApplyOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)

	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	_, err = Apply(t.Context(), dir, bytes.NewReader(tarOf(t, file("f", "x"))), ApplyOptions{Empty: true})
	require.ErrorIs(t, err, unix.EEXIST)
	require.ErrorContains(t, err, `entry 0, "f"`)

	var entry *EntryError
	_, err = Apply(t.Context(), dir, bytes.NewReader(tarOf(t, file("f", "x"), file("g", ""), file("f/below", ""))), ApplyOptions{})
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.ErrorAs(t, err, &entry)
	assert.Equal(t, EntryError{Index: 2, Name: "f/below", Err: entry.Err}, *entry)

	apply(t, dir, nil, ApplyOptions{})
	apply(t, dir, make([]byte, 512), ApplyOptions{})
}
