//go:build linux

package graphtest

import (
	"maps"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var contentTests = []Test{
	{"ContentInChild", contentInChild},
	{"ContentInDiff", contentInDiff},
	{"SparseStaysSparse", sparseStaysSparse},
	{"WhiteoutNames", whiteoutNames},
}

// content is something that a layer may hold.
type content struct {
	name  string
	build func(w tree)
}

// contents are kinds of files that drivers and tars have got wrong.
var contents = []content{
	{"modes and owners", func(w tree) {
		for name, mode := range map[string]uint32{
			"setuid": 0o4755, "setgid": 0o2755, "sticky": 0o1644, "all": 0o7777, "none": 0, "write-only": 0o222,
		} {
			w.file(name, name)
			w.chmod(name, mode)
			w.mkdir("d-" + name)
			w.chmod("d-"+name, mode)
		}
		for name, owner := range map[string][2]int{
			"daemon": {1, 2}, "nobody": {65534, 65534}, "beyond 16 bits": {100000, 165535}, "largest": {1<<32 - 2, 1<<32 - 2},
		} {
			w.file(name, name)
			w.chown(name, owner[0], owner[1])
			w.chmod(name, 0o6755)
			w.mkdir("d-" + name)
			w.chown("d-"+name, owner[0], owner[1])
		}
	}},
	{"hard links", func(w tree) {
		w.mkdir("a/b")
		w.mkdir("z")
		w.file("one", "in one directory")
		w.link("one", "two")
		w.file("z/last", "in several directories")
		w.link("z/last", "a/b/first")
		w.link("z/last", "middle")
		w.file("empty", "")
		w.link("empty", "also empty")
		w.symlink("one", "symlink")
		w.link("symlink", "symlink too")
		w.mknod("fifo", unix.S_IFIFO|0o644, 0, 0)
		w.link("fifo", "fifo too")
	}},
	{"symbolic links", func(w tree) {
		w.mkdir("d")
		w.symlink("d", "relative")
		w.symlink("/etc/passwd", "absolute")
		w.symlink("../../../../../../etc/passwd", "upward")
		w.symlink("nowhere", "dangling")
		w.symlink("loop", "loop")
		w.symlink(strings.Repeat("x/", 2000)+"x", "long")
		w.symlink("line\nbreak \xff", "odd")
		w.symlink("d", "owned")
		w.chown("owned", 5, 6)
		w.touch("owned")
	}},
	{"extended attributes", func(w tree) {
		w.file("capable", "x")
		w.setxattr("capable", "security.capability", capability(10)) // CAP_NET_BIND_SERVICE
		w.file("user", "x")
		w.setxattr("user", "user.text", []byte("value"))
		w.setxattr("user", "user.empty", nil)
		w.setxattr("user", "user.binary", []byte("\x00\x01\xff=\n\x00"))
		w.setxattr("user", "user.large", randomBytes(1, 2000))
		w.file("trusted", "x")
		w.setxattr("trusted", "trusted.note", []byte("root only"))
		w.mkdir("d")
		w.setxattr("d", "user.text", []byte("of a directory"))
	}},
	{"devices", func(w tree) {
		w.mknod("null", unix.S_IFCHR|0o666, 1, 3)
		w.mknod("loop", unix.S_IFBLK|0o660, 7, 0)
		w.mknod("large numbers", unix.S_IFBLK|0o600, 4000, 300000)
		if !w.isOverlay() { // an overlay does not allow it
			w.mknod(likeWhiteout, unix.S_IFCHR|0o600, 0, 0)
		}
		w.chown("loop", 0, 6)
		w.touch("loop")
	}},
	{"fifos and sockets", func(w tree) {
		w.mknod("fifo", unix.S_IFIFO|0o620, 0, 0)
		w.mkdir("run")
		w.mknod("run/socket", unix.S_IFSOCK|0o700, 0, 0)
		w.file("run/file", "beside the socket")
	}},
	{"sparse files", buildSparse},
	{"odd names", func(w tree) {
		for i, name := range oddNames {
			w.file(name, strconv.Itoa(i))
			w.mkdir("in/" + name)
			w.file("in/"+name+"/"+name, name)
			w.symlink(name, "in/"+name+"/link")
			w.link(name, "in/"+name+"/hard")
		}
	}},
	{"deep tree", func(w tree) {
		w.deep(func(w tree) {
			w.file("bottom", "far down")
			w.symlink("bottom", "link")
			w.link("bottom", "hard")
			w.mkdir("empty")
		})
	}},
	{"times", func(w tree) {
		for name, when := range map[string]time.Time{
			"epoch":         time.Unix(0, 0),
			"before":        time.Unix(-2, 500_000_000),
			"long before":   time.Date(1910, 1, 1, 0, 0, 0, 0, time.UTC),
			"whole second":  time.Unix(1_600_000_000, 0),
			"almost next":   time.Unix(1_600_000_000, 999_999_999),
			"beyond 2038":   time.Date(2040, 1, 1, 0, 0, 0, 1, time.UTC),
			"beyond 32 bit": time.Date(2110, 1, 1, 0, 0, 0, 1, time.UTC),
		} {
			w.at(when).file(name, name)
			w.mkdir("d-" + name)
			w.at(when).touch("d-" + name)
		}
	}},
	{"many files", func(w tree) {
		for d := range 10 {
			dir := "d" + strconv.Itoa(d)
			w.mkdir(dir)
			for f := range 30 {
				w.file(path.Join(dir, strconv.Itoa(f)), strings.Repeat("x", d*f))
			}
		}
	}},
	{"large file", func(w tree) { w.file("large", string(randomBytes(2, 9<<20+1))) }},
}

// oddNames are names that are hard to write, print, sort or put in a tar.
var oddNames = []string{
	"line\nbreak", "\n", "tab\t", " ", "  two ", "-rf", "--", "...", "..a", "a..", "back\\slash", "quote\"'`", "$HOME", "*?[a]",
	"\x01\x1f\x7f", "\xff\xfe", "cut \xe2\x82", "caf\u00e9", "cafe\u0301", "\u202e", "a=b", "12 path=x\n", "#", ";", "~", "x.wh.y", ".wh", "wh.",
	strings.Repeat("n", 255), strings.Repeat("\xff", 255), strings.Repeat("\n", 255), strings.Repeat("é", 127),
	strings.Repeat("t", 100), strings.Repeat("t", 101),
}

// likeWhiteout is a file that overlayfs takes for the mark of a removed name.
const likeWhiteout = "like an overlay whiteout"

// contentInChild: a child has all that its parent holds, whatever it is.
func contentInChild(t testing.TB, c Config) {
	l := c.open(t)
	for _, content := range contents {
		subtest(t, content.name, func(t testing.TB) {
			l := l.of(t)
			base := l.filled("", content.build)
			want := l.scan(base)
			require.Greater(t, len(want), 1)
			shown := maps.Clone(want)
			if c.Overlay {
				delete(shown, likeWhiteout)
			}
			child := l.layer(base)
			assertSameTree(t, shown, l.scan(child), "the child")
			assert.Empty(t, l.changes(child, base), "a child that nothing was done to has no changes")
			l.edit(child, func(w tree) {
				for name := range want {
					if name != "." && !strings.Contains(name, "/") {
						w.remove(name)
					}
				}
			})
			assertSameTree(t, want, l.scan(base), "the parent of an emptied child")
			assert.Len(t, l.scan(child), 1)
		})
	}
}

// contentInDiff: the content of a layer is listed, goes through a tar and comes out again. This holds for a layer
// without a parent, and for a child.
func contentInDiff(t testing.TB, c Config) {
	l := c.open(t)
	for _, content := range contents {
		subtest(t, content.name, func(t testing.TB) {
			l := l.of(t)
			whole := l.filled("", content.build)
			added := l.scan(whole).added()
			assertSameList(t, added, l.agree(whole, "", loss{}), "the changes of a layer without a parent")

			base := l.layer("")
			onTop := l.filled(base, content.build)
			if c.Overlay {
				added = without(added, "A /"+likeWhiteout)
			}
			assertSameList(t, added, l.agree(onTop, base, loss{}), "the changes of a layer on an empty parent")
		})
	}
}

// sparseSize is the size of a sparse file in the tests, and sparseMost the most that it may use on disk, in bytes.
const (
	sparseSize = 4 << 20
	sparseMost = 1 << 20
)

func buildSparse(w tree) {
	w.sparse("hole", sparseSize)
	w.sparse("start", sparseSize, 0)
	w.sparse("end", sparseSize, sparseSize-4096)
	w.sparse("middle", sparseSize, sparseSize/2)
	w.sparse("several", sparseSize, 4096, sparseSize/4, sparseSize/4*3)
}

// sparseStaysSparse: making a child does not fill holes. (A tar does, contentInDiff compares its content.)
func sparseStaysSparse(t testing.TB, c Config) {
	l := c.open(t)
	child := l.scan(l.layer(l.filled("", buildSparse)))
	for _, name := range []string{"hole", "start", "end", "middle", "several"} {
		assert.Equal(t, int64(sparseSize), child[name].size, name)
		assert.LessOrEqual(t, child[name].allocated, int64(sparseMost), "bytes on disk of %s", name)
	}
}

// whiteoutNames: names that begin as whiteouts do are plain names while they are in a layer. A diff has no
// way to say them: it is an error, or leaves them out; it never turns them into deletions.
func whiteoutNames(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) {
		w.file("kept", "x")
		w.mkdir("d")
		w.file("d/kept", "x")
	})
	id := l.filled(base, func(w tree) {
		w.file(".wh.kept", "not a whiteout")
		w.mkdir("d/.wh..wh..opq")
		w.file("d/.wh.kept", "not a whiteout either")
		w.file("d/.wh.", "x")
	})
	want := l.scan(id)
	assertSameTree(t, want, l.scan(l.layer(id)), "the child")
	assert.Equal(t, []string{"A /.wh.kept", "C /d", "A /d/.wh.", "A /d/.wh..wh..opq", "A /d/.wh.kept"}, l.changes(id, base))

	layerTar, err := readDiff(l.Driver, id, base)
	if err != nil {
		return
	}
	applied := l.layer(base)
	l.apply(applied, base, layerTar)
	tree := l.scan(applied)
	assert.Contains(t, tree, "kept", "a diff deletes a file that the layer has not deleted")
	assert.Contains(t, tree, "d/kept", "a diff deletes a file that the layer has not deleted")
}
