//go:build linux

package graphtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var changesTests = []Test{
	{"Changes", changesAreExact},
	{"ChangesOfDeepTree", changesOfDeepTree},
	{"ChangesOfManyFiles", changesOfManyFiles},
	{"ChangesBetweenAnyTwo", changesBetweenAnyTwo},
	{"EmptyDiff", emptyDiff},
}

// edit is something that is done to a layer, with the changes that it makes.
type edit struct {
	name string
	base func(w tree) // fills the parent
	edit func(w tree) // changes the child
	want []string     // sorted by path
	loss loss
	// brokenOff are changes that an overlay does not have, because it gives a written name a file of its own.
	brokenOff []string
}

// edits are typical changes of containers and builds to layers, one at a time.
var edits = []edit{
	// Files.
	{
		name: "nothing", base: someContent, edit: func(tree) {},
	}, {
		name: "add file", base: someContent,
		edit: func(w tree) { w.file("new", "x") },
		want: []string{"A /new"},
	}, {
		name: "add file in directory", base: someContent,
		edit: func(w tree) { w.file("etc/deep/er/new", "x") },
		want: []string{"C /etc", "C /etc/deep", "C /etc/deep/er", "A /etc/deep/er/new"},
	}, {
		name: "add directories", base: someContent,
		edit: func(w tree) { w.mkdir("x/y/z"); w.file("x/y/f", "x") },
		want: []string{"A /x", "A /x/y", "A /x/y/f", "A /x/y/z"},
	}, {
		name: "write file", base: func(w tree) { w.file("f", "before") },
		edit: func(w tree) { w.file("f", "after, and longer") },
		want: []string{"C /f"},
	}, {
		name: "truncate file", base: func(w tree) { w.file("f", "before") },
		edit: func(w tree) { w.file("f", "") },
		want: []string{"C /f"},
	}, {
		name: "write file of the same size", base: func(w tree) { w.file("f", "before") },
		edit: func(w tree) { w.file("f", "behind") },
		want: []string{"C /f"},
	}, {
		name: "write file of the same size in the same second", base: func(w tree) { w.file("f", "before") },
		edit: func(w tree) { w.at(baseTime.Add(1)).file("f", "behind") },
		want: []string{"C /f"}, loss: loss{seconds: true},
	}, {
		name: "replace file by rename", base: func(w tree) { w.file("f", "before") },
		edit: func(w tree) { w.file("f.new", "behind"); w.rename("f.new", "f") },
		want: []string{"C /f"},
	}, {
		name: "write hole in sparse file", base: func(w tree) { w.sparse("f", 1<<20, 0) },
		edit: func(w tree) { w.sparse("f", 2<<20, 1<<20) },
		want: []string{"C /f"},
	}, {
		name: "delete file", base: someContent,
		edit: func(w tree) { w.remove("a file"); w.remove("etc/passwd") },
		want: []string{"D /a file", "C /etc", "D /etc/passwd"},
	}, {
		name: "delete new files", base: someContent,
		edit: func(w tree) { w.file("etc/x", "x"); w.remove("etc/x"); w.mkdir("y"); w.remove("y") },
		loss: loss{times: true},
	}, {
		name: "time of file", base: func(w tree) { w.file("f", "x") },
		edit: func(w tree) { w.touch("f") },
		want: []string{"C /f"},
	}, {
		name: "time of directory", base: func(w tree) { w.mkdir("d"); w.file("d/f", "x") },
		edit: func(w tree) { w.touch("d") },
		loss: loss{times: true},
	}, {
		name: "mode of file", base: someContent,
		edit: func(w tree) { w.chmod("etc/passwd", 0o600) },
		want: []string{"C /etc", "C /etc/deep", "C /etc/deep/er", "C /etc/deep/er/passwd", "C /etc/passwd"}, brokenOff: []string{"C /etc/deep", "C /etc/deep/er", "C /etc/deep/er/passwd"},
	}, {
		name: "setuid", base: func(w tree) { w.file("f", "x"); w.chmod("f", 0o755) },
		edit: func(w tree) { w.chmod("f", 0o4755) },
		want: []string{"C /f"},
	}, {
		name: "owner of file", base: func(w tree) { w.file("u", "x"); w.file("g", "x"); w.symlink("x", "s") },
		edit: func(w tree) { w.chown("u", 1, 0); w.chown("g", 0, 1); w.chown("s", 1, 1) },
		want: []string{"C /g", "C /s", "C /u"},
	}, {
		name: "mode and owner of directory", base: func(w tree) { w.mkdir("m/x"); w.mkdir("o/x") },
		edit: func(w tree) { w.chmod("m", 0o1777); w.chown("o", 1, 1) },
		want: []string{"C /m", "C /o"},
	}, {
		name: "root directory", base: someContent,
		edit: func(w tree) { w.chmod(".", 0o700); w.chown(".", 1, 1); w.touch(".") },
	}, {
		name: "capabilities",
		base: func(w tree) {
			w.file("given", "x")
			w.file("taken", "x")
			w.setxattr("taken", "security.capability", capability(10))
			w.file("other", "x")
			w.setxattr("other", "security.capability", capability(10))
		},
		edit: func(w tree) {
			w.setxattr("given", "security.capability", capability(10))
			require.NoError(w.t, unix.Lremovexattr(w.path("taken"), "security.capability"))
			w.setxattr("other", "security.capability", capability(12))
		},
		want: []string{"C /given", "C /other", "C /taken"},
	},

	// Types.
	{
		name: "file to directory", base: func(w tree) { w.file("x", "x") },
		edit: func(w tree) { w.remove("x"); w.mkdir("x/d"); w.file("x/f", "x") },
		want: []string{"C /x", "A /x/d", "A /x/f"},
	}, {
		name: "directory to file", base: func(w tree) { w.mkdir("x/d"); w.file("x/f", "x") },
		edit: func(w tree) { w.remove("x"); w.file("x", "x") },
		want: []string{"C /x"},
	}, {
		name: "directory to symbolic link to where it went", base: func(w tree) { w.mkdir("usr"); w.mkdir("bin"); w.file("bin/sh", "x") },
		edit: func(w tree) { w.rename("bin", "usr/bin"); w.symlink("usr/bin", "bin") },
		want: []string{"C /bin", "C /usr", "A /usr/bin", "A /usr/bin/sh"},
	}, {
		name: "symbolic link to directory", base: func(w tree) { w.mkdir("d"); w.file("d/f", "x"); w.symlink("d", "x") },
		edit: func(w tree) { w.remove("x"); w.mkdir("x"); w.file("x/f", "x") },
		want: []string{"C /x", "A /x/f"},
	}, {
		name: "file to other types",
		base: func(w tree) {
			for _, name := range []string{"block", "char", "fifo", "link"} {
				w.file(name, "x")
			}
		},
		edit: func(w tree) {
			for _, name := range []string{"block", "char", "fifo", "link"} {
				w.remove(name)
			}
			w.mknod("block", unix.S_IFBLK|0o644, 7, 0)
			w.mknod("char", unix.S_IFCHR|0o644, 1, 3)
			w.mknod("fifo", unix.S_IFIFO|0o644, 0, 0)
			w.symlink("x", "link")
		},
		want: []string{"C /block", "C /char", "C /fifo", "C /link"},
	}, {
		name: "other types to file",
		base: func(w tree) {
			w.mknod("block", unix.S_IFBLK|0o644, 7, 0)
			w.mknod("fifo", unix.S_IFIFO|0o644, 0, 0)
			w.mknod("socket", unix.S_IFSOCK|0o644, 0, 0)
		},
		edit: func(w tree) {
			for _, name := range []string{"block", "fifo", "socket"} {
				w.remove(name)
				w.file(name, "")
			}
		},
		want: []string{"C /block", "C /fifo", "C /socket"},
	}, {
		name: "device number", base: func(w tree) { w.mknod("dev", unix.S_IFCHR|0o644, 1, 3) },
		edit: func(w tree) { w.remove("dev"); w.at(baseTime).mknod("dev", unix.S_IFCHR|0o644, 1, 5) },
		want: []string{"C /dev"},
	}, {
		name: "target of symbolic link", base: func(w tree) { w.symlink("one", "link") },
		edit: func(w tree) { w.remove("link"); w.symlink("two", "link") },
		want: []string{"C /link"},
	}, {
		name: "socket", base: func(w tree) { w.mkdir("run") },
		edit: func(w tree) { w.mknod("run/s", unix.S_IFSOCK|0o755, 0, 0) },
		want: []string{"C /run", "A /run/s"},
	},

	// Directories.
	{
		name: "delete directory", base: someContent,
		edit: func(w tree) { w.remove("etc") },
		want: []string{"D /etc"},
	}, {
		name: "delete everything", base: someContent,
		edit: func(w tree) {
			for _, name := range []string{"a file", "a subdir", "empty", "etc", "setgid"} {
				w.remove(name)
			}
		},
		want: []string{"D /a file", "D /a subdir", "D /empty", "D /etc", "D /setgid"},
	}, {
		name: "empty a directory", base: func(w tree) { w.mkdir("d/e"); w.file("d/f", "x") },
		edit: func(w tree) { w.remove("d/e"); w.remove("d/f") },
		want: []string{"C /d", "D /d/e", "D /d/f"},
	}, {
		name: "new directory of the same name", base: func(w tree) { w.mkdir("d/kept"); w.file("d/old", "x") },
		edit: func(w tree) { w.remove("d"); w.mkdir("d/kept"); w.file("d/new", "x") },
		want: []string{"C /d", "A /d/new", "D /d/old"}, loss: loss{times: true},
	}, {
		name: "rename directory", base: func(w tree) { w.mkdir("d/s"); w.file("d/s/f", "x"); w.file("d/f", "x") },
		edit: func(w tree) { w.rename("d", "e") },
		want: []string{"D /d", "A /e", "A /e/f", "A /e/s", "A /e/s/f"},
	}, {
		name: "rename directory and change a file in it", base: func(w tree) { w.mkdir("d"); w.file("d/f", "x"); w.file("d/g", "x") },
		edit: func(w tree) { w.rename("d", "e"); w.file("e/f", "changed") },
		want: []string{"D /d", "A /e", "A /e/f", "A /e/g"},
	}, {
		name: "rename directory there and back", base: func(w tree) { w.mkdir("d"); w.file("d/f", "x") },
		edit: func(w tree) { w.rename("d", "e"); w.rename("e", "d") },
	}, {
		name: "move directory up", base: func(w tree) { w.mkdir("a/b"); w.file("a/b/f", "x") },
		edit: func(w tree) { w.rename("a/b", "b") },
		want: []string{"C /a", "D /a/b", "A /b", "A /b/f"},
	}, {
		name: "move directory down", base: func(w tree) { w.mkdir("a"); w.mkdir("b"); w.file("b/f", "x") },
		edit: func(w tree) { w.rename("b", "a/b") },
		want: []string{"C /a", "A /a/b", "A /a/b/f", "D /b"},
	}, {
		name: "swap directories",
		base: func(w tree) {
			w.mkdir("a")
			w.file("a/both", "in a")
			w.file("a/same", "same")
			w.file("a/only-a", "x")
			w.mkdir("b")
			w.file("b/both", "that in b")
			w.file("b/same", "same")
			w.file("b/only-b", "x")
		},
		edit: func(w tree) { w.exchange("a", "b") },
		want: []string{
			"C /a", "C /a/both", "D /a/only-a", "A /a/only-b",
			"C /b", "C /b/both", "A /b/only-a", "D /b/only-b",
		},
	}, {
		name: "swap a directory and its subdirectory", base: func(w tree) { w.mkdir("p/c"); w.file("p/c/f", "x"); w.file("p/g", "x") },
		edit: func(w tree) { w.rename("p/c", "t"); w.rename("p", "t/c"); w.rename("t", "p") },
		want: []string{"C /p", "C /p/c", "D /p/c/f", "A /p/c/g", "A /p/f", "D /p/g"},
	}, {
		name: "swap a file and a directory", base: func(w tree) { w.file("x", "x"); w.mkdir("y"); w.file("y/f", "x") },
		edit: func(w tree) { w.exchange("x", "y") },
		want: []string{"C /x", "A /x/f", "C /y"},
	}, {
		name: "replace a directory by another", base: func(w tree) { w.mkdir("a"); w.file("a/old", "x"); w.mkdir("b"); w.file("b/new", "x") },
		edit: func(w tree) { w.remove("a"); w.rename("b", "a") },
		want: []string{"C /a", "A /a/new", "D /a/old", "D /b"},
	}, {
		name: "three directories in a circle",
		base: func(w tree) {
			for _, d := range []string{"a", "b", "c"} {
				w.mkdir(d)
				w.file(d+"/was-in-"+d, d)
			}
		},
		edit: func(w tree) { w.rename("a", "t"); w.rename("b", "a"); w.rename("c", "b"); w.rename("t", "c") },
		want: []string{
			"C /a", "D /a/was-in-a", "A /a/was-in-b",
			"C /b", "D /b/was-in-b", "A /b/was-in-c",
			"C /c", "A /c/was-in-a", "D /c/was-in-c",
		},
	},

	// Names.
	{
		name: "rename file", base: func(w tree) { w.file("a", "x") },
		edit: func(w tree) { w.rename("a", "b") },
		want: []string{"D /a", "A /b"},
	}, {
		name: "rename file to another case", base: func(w tree) { w.file("Readme", "x") },
		edit: func(w tree) { w.rename("Readme", "README") },
		want: []string{"A /README", "D /Readme"},
	}, {
		name: "rename file over another", base: func(w tree) { w.file("a", "x"); w.file("b", "longer") },
		edit: func(w tree) { w.rename("a", "b") },
		want: []string{"D /a", "C /b"},
	}, {
		name: "move file to another directory", base: func(w tree) { w.mkdir("a"); w.mkdir("b"); w.file("a/f", "x") },
		edit: func(w tree) { w.rename("a/f", "b/f") },
		want: []string{"C /a", "D /a/f", "C /b", "A /b/f"},
	}, {
		name: "swap files", base: func(w tree) { w.file("a", "x"); w.file("b", "longer") },
		edit: func(w tree) { w.exchange("a", "b") },
		want: []string{"C /a", "C /b"},
	}, {
		name: "names that sort around a slash", base: func(w tree) {
			w.mkdir("a")
			w.file("a/b", "x")
			w.file("a.b", "x")
			w.file("a-", "x")
			w.file("a0", "x")
		},
		edit: func(w tree) {
			w.file("a/b", "changed")
			w.remove("a.b")
			w.file("a-", "changed")
			w.file("a ", "new")
			w.remove("a0")
		},
		want: []string{"C /a", "A /a ", "C /a-", "D /a.b", "C /a/b", "D /a0"},
	}, {
		name: "odd names", base: func(w tree) {
			w.mkdir("d\n")
			w.file("d\n/\xff", "x")
			w.file("line\nbreak", "x")
			w.file("-rf", "x")
			w.file(" ", "x")
		},
		edit: func(w tree) {
			w.file("d\n/\xff", "changed")
			w.rename("line\nbreak", "line\tbreak\xfe")
			w.remove("-rf")
			w.chmod(" ", 0o600)
			w.file("back\\slash", "new")
		},
		want: []string{"C / ", "D /-rf", "A /back\\slash", "C /d\n", "C /d\n/\xff", "A /line\tbreak\xfe", "D /line\nbreak"},
	}, {
		name: "longest names", base: func(w tree) { w.file(strings.Repeat("a", 255), "x"); w.file(strings.Repeat("b", 250), "x") },
		edit: func(w tree) {
			w.file(strings.Repeat("a", 255), "changed")
			w.remove(strings.Repeat("b", 250))
			w.file(strings.Repeat("c", 255), "new")
		},
		want: []string{"C /" + strings.Repeat("a", 255), "D /" + strings.Repeat("b", 250), "A /" + strings.Repeat("c", 255)},
	},

	// Hard links.
	{
		name: "new name for an unchanged file", base: func(w tree) { w.file("f", "x") },
		edit: func(w tree) { w.link("f", "g") },
		want: []string{"A /g"}, loss: loss{links: true},
	}, {
		name: "one name of several deleted", base: func(w tree) { w.file("f", "x"); w.link("f", "g"); w.link("f", "h") },
		edit: func(w tree) { w.remove("g") },
		want: []string{"D /g"},
	}, {
		name: "written through one name", base: func(w tree) { w.mkdir("a"); w.mkdir("z"); w.file("z/f", "x"); w.link("z/f", "a/f"); w.link("z/f", "m") },
		edit: func(w tree) { w.file("m", "changed") },
		want: []string{"C /a", "C /a/f", "C /m", "C /z", "C /z/f"}, brokenOff: []string{"C /a", "C /a/f", "C /z", "C /z/f"},
	}, {
		name: "written and given a new name", base: func(w tree) { w.file("f", "x"); w.link("f", "g") },
		edit: func(w tree) { w.file("f", "changed"); w.link("f", "a") },
		want: []string{"A /a", "C /f", "C /g"}, brokenOff: []string{"C /g"},
	}, {
		name: "one name broken off", base: func(w tree) { w.file("f", "x"); w.link("f", "g") },
		edit: func(w tree) { w.remove("g"); w.file("g", "own") },
		want: []string{"C /g"},
	}, {
		name: "a file replaced by a name of another", base: func(w tree) { w.file("f", "x"); w.file("g", "longer") },
		edit: func(w tree) { w.remove("g"); w.link("f", "g") },
		want: []string{"C /g"}, loss: loss{links: true},
	}, {
		name: "new file with several names", base: func(w tree) { w.mkdir("d") },
		edit: func(w tree) { w.file("f", "x"); w.link("f", "d/f"); w.link("f", "a") },
		want: []string{"A /a", "C /d", "A /d/f", "A /f"},
	}, {
		name: "directory of linked files renamed", base: func(w tree) { w.mkdir("d"); w.file("d/f", "x"); w.link("d/f", "d/g") },
		edit: func(w tree) { w.rename("d", "e") },
		want: []string{"D /d", "A /e", "A /e/f", "A /e/g"},
	},
}

// changesAreExact: each edit makes exactly its changes, and the diff carries them over.
func changesAreExact(t testing.TB, c Config) {
	l := c.open(t)
	for _, edit := range edits {
		subtest(t, edit.name, func(t testing.TB) {
			l := l.of(t)
			base := l.filled("", edit.base)
			id := l.filled(base, func(w tree) { edit.edit(w.at(editTime)) })
			want := edit.want
			if c.Overlay {
				want = without(want, edit.brokenOff...)
			}
			assertSameList(t, want, l.agree(id, base, edit.loss), "the changes")
		})
	}
}

// without returns the list without some of its elements.
func without(list []string, elements ...string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(elements, s) })
}

// changesOfDeepTree: a change at the end of a path longer than PATH_MAX is found and carried over.
func changesOfDeepTree(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) {
		w.deep(func(w tree) { w.file("bottom", "x"); w.file("gone", "x"); w.file("same", "x") })
	})
	var want []string
	id := l.filled(base, func(w tree) {
		chain := w.at(editTime).deep(func(w tree) { w.file("bottom", "changed"); w.remove("gone"); w.file("new", "x") })
		path := ""
		for _, name := range chain {
			path += "/" + name
			want = append(want, "C "+path)
		}
		want = append(want, "C "+path+"/bottom", "D "+path+"/gone", "A "+path+"/new")
	})
	assertSameList(t, want, l.agree(id, base, loss{}), "the changes")
}

// changesOfManyFiles: in a directory of many files each third is changed, removed, or gets a new one beside
// it.
func changesOfManyFiles(t testing.TB, c Config) {
	const count = 600
	l := c.open(t)
	name := func(i int) string { return fmt.Sprintf("directory-%d/file-%03d", i/200, i) }
	base := l.filled("", func(w tree) {
		for i := range count {
			w.mkdir(fmt.Sprintf("directory-%d", i/200))
			w.file(name(i), strings.Repeat("x", i))
		}
	})
	want := []string{"C /directory-0", "C /directory-1", "C /directory-2"}
	id := l.filled(base, func(w tree) {
		w = w.at(editTime)
		for i := range count {
			switch i % 3 {
			case 0:
				w.file(name(i), strings.Repeat("y", i))
				want = append(want, "C /"+name(i))
			case 1:
				w.file(name(i)+"-new", "x")
				want = append(want, "A /"+name(i)+"-new")
			case 2:
				w.remove(name(i))
				want = append(want, "D /"+name(i))
			}
		}
	})
	slices.SortFunc(want, func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
	assertSameList(t, want, l.agree(id, base, loss{}), "the changes")
}

// changesBetweenAnyTwo: layers need not be parent and child to be compared.
func changesBetweenAnyTwo(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) { w.file("base", "x"); w.mkdir("d"); w.file("d/f", "x") })
	one := l.filled(base, func(w tree) { w = w.at(editTime); w.file("one", "x"); w.file("d/f", "changed") })
	two := l.filled(base, func(w tree) { w = w.at(editTime); w.file("two", "x"); w.remove("base") })
	grandchild := l.filled(one, func(w tree) { w = w.at(editTime.Add(1)); w.remove("one"); w.file("d/g", "x") })
	stranger := l.filled("", func(w tree) { w.file("base", "x"); w.mkdir("d"); w.file("own", "x") })

	for _, test := range []struct {
		name, id, parent string
		want             []string
	}{
		{"siblings", two, one, []string{"D /base", "C /d", "C /d/f", "D /one", "A /two"}},
		{"grandchild and base", grandchild, base, []string{"C /d", "C /d/f", "A /d/g"}},
		{"parent and child, the wrong way round", base, one, []string{"C /d", "C /d/f", "D /one"}},
		{"layers that have nothing to do with each other", stranger, one, []string{"C /d", "D /d/f", "D /one", "A /own"}},
		{"a layer and itself", one, one, []string{}},
	} {
		subtest(t, test.name, func(t testing.TB) {
			assertSameList(t, test.want, l.of(t).agree(test.id, test.parent, loss{}), "the changes")
		})
	}
}

// emptyDiff: where nothing changed, the diff is a tar without entries.
func emptyDiff(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	child := l.layer(base)
	for _, test := range []struct{ id, parent string }{{child, base}, {base, base}, {l.layer(""), ""}} {
		layerTar := l.diff(test.id, test.parent)
		assert.Empty(t, headers(t, layerTar))
		assert.Equal(t, make([]byte, 1024), layerTar, "the end of a tar is two empty blocks")
		assert.Zero(t, l.diffSize(test.id, test.parent))
		assert.Empty(t, l.changes(test.id, test.parent))
	}
	want := l.scan(child)
	assert.Zero(t, l.apply(child, base, make([]byte, 1024)))
	assertSameTree(t, want, l.scan(child), "a layer to which nothing was applied")
}
