//go:build linux

package graphtest

import (
	"os"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
)

var createTests = []Test{
	{"CreateEmpty", createEmpty},
	{"CreateChildEqualsParent", createChildEqualsParent},
	{"CreateFromReadWriteLayer", createFromReadWriteLayer},
	{"CreateFromHeldLayer", createFromHeldLayer},
	{"CreateExisting", createExisting},
	{"CreateWithoutParent", createWithoutParent},
	{"ParentStaysUnchanged", parentStaysUnchanged},
	{"ParentIsSealed", parentIsSealed},
	{"SiblingsAreIsolated", siblingsAreIsolated},
}

// creator is Create or CreateReadWrite.
type creator struct {
	name   string
	create func(id, parent string, opts *graphdriver.CreateOpts) error
}

func creators(d graphdriver.Driver) []creator {
	return []creator{{"Create", d.Create}, {"CreateReadWrite", d.CreateReadWrite}}
}

// createEmpty: a layer without a parent is empty, and its root is 0755 and owned by root, whatever the
// umask.
func createEmpty(t testing.TB, c Config) {
	l := c.open(t)
	for _, creator := range creators(l.Driver) {
		for _, umask := range []int{0, 0o077} {
			id := newID()
			old := unix.Umask(umask)
			err := creator.create(id, "", nil)
			unix.Umask(old)
			require.NoError(t, err)
			l.removeLater(id)

			assert.True(t, l.Exists(id))
			tree := l.scan(id)
			assert.Equal(t, uint32(unix.S_IFDIR|0o755), tree["."].mode, "%s with umask %o", creator.name, umask)
			assert.Zero(t, tree["."].uid)
			assert.Zero(t, tree["."].gid)
			assert.Len(t, tree, 1, "%s: a new layer is empty", creator.name)
		}
	}
}

// someContent fills a base with a little of everything that is easily lost: odd modes and owners, links.
func someContent(w tree) {
	w.mkdir("a subdir")
	w.chown("a subdir", 1, 2)
	w.chmod("a subdir", 0o1705)
	w.file("a file", "Some data")
	w.chmod("a file", 0o4222)
	w.file("etc", "x")
	w.remove("etc")
	w.mkdir("etc/deep/er")
	w.file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
	w.link("etc/passwd", "etc/deep/er/passwd")
	w.symlink("../etc/passwd", "etc/link")
	w.file("empty", "")
	w.file("setgid", "data")
	w.chown("setgid", 65534, 65534)
	w.chmod("setgid", 0o2755)
}

// createChildEqualsParent: a child has its parent's tree, that of the root directory included.
func createChildEqualsParent(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) {
		someContent(w)
		w.chown(".", 3, 4)
		w.chmod(".", 0o2711)
		w.touch(".")
	})
	want := l.scan(base)
	for _, creator := range creators(l.Driver) {
		id := newID()
		require.NoError(t, creator.create(id, base, nil))
		l.removeLater(id)
		assertSameTree(t, want, l.scan(id), creator.name)
	}
	assertSameTree(t, want, l.scan(base), "the parent")
}

// createFromReadWriteLayer: Docker makes a container's layer on a read-write layer, "<id>-init".
func createFromReadWriteLayer(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	id := newID()
	require.NoError(t, l.CreateReadWrite(id+"-init", base, nil))
	l.removeLater(id + "-init")
	l.edit(id+"-init", func(w tree) { w.at(editTime).file("etc/hosts", "127.0.0.1 localhost\n") })
	require.NoError(t, l.CreateReadWrite(id, id+"-init", nil))
	l.removeLater(id)

	l.edit(id, func(w tree) { w.at(editTime).file("run", "me") })
	assert.Equal(t, []string{"C /etc", "A /etc/hosts"}, l.changes(id+"-init", base))
	assert.Equal(t, []string{"A /run"}, l.changes(id, id+"-init"))
	assert.Equal(t, []string{"C /etc", "A /etc/hosts", "A /run"}, l.changes(id, base))
}

// createFromHeldLayer: a layer that someone holds can become a parent, and goes on being written to.
func createFromHeldLayer(t testing.TB, c Config) {
	l := c.open(t)
	parent := l.filled("", someContent)
	before := l.scan(parent)

	dir := l.get(parent)
	w := tree{t: t, dir: dir, when: editTime}
	open, err := os.OpenFile(w.path("empty"), os.O_WRONLY, 0)
	require.NoError(t, err)
	defer func() { _ = open.Close() }()

	child := l.layer(parent)
	_, err = open.WriteString("written through a descriptor that was open before")
	require.NoError(t, err)
	w.file("new", "written after")
	l.put(parent)

	assertSameTree(t, before, l.scan(child), "the child has its parent's tree of the moment it was made in")
	assert.Equal(t, before["."].mode, l.scan(parent)["."].mode)
	assert.Contains(t, l.scan(parent), "new")
}

// createExisting: an id is taken until its layer is removed.
func createExisting(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	id := l.filled(base, func(w tree) { w.at(editTime).file("mine", "x") })
	want := l.scan(id)
	for _, creator := range creators(l.Driver) {
		for _, parent := range []string{"", base, id, "absent"} {
			err := creator.create(id, parent, nil)
			require.Error(t, err, "%s of an existing id on %q", creator.name, parent)
			if parent == "" || parent == base {
				require.ErrorIs(t, err, errdefs.ErrAlreadyExists, creator.name)
			}
			assertSameTree(t, want, l.scan(id), creator.name+" of an existing id")
		}
	}
	assert.Equal(t, []string{"A /mine"}, l.changes(id, base))
}

// createWithoutParent: without its parent a layer is not made, and nothing stays of the attempt.
func createWithoutParent(t testing.TB, c Config) {
	l := c.open(t)
	for _, creator := range creators(l.Driver) {
		id := newID()
		for _, parent := range []string{newID(), id} {
			require.ErrorIs(t, creator.create(id, parent, nil), errdefs.ErrNotFound, creator.name)
			assert.False(t, l.Exists(id), "%s left a layer behind", creator.name)
			assert.False(t, l.Exists(parent), "%s made a parent", creator.name)
			_, err := l.Get(id, "")
			require.ErrorIs(t, err, errdefs.ErrNotFound)
		}
		require.NoError(t, creator.create(id, "", nil), "the id is free")
		l.removeLater(id)
	}
}

// editOf changes the content of someContent as containers do.
func editOf(w tree) {
	w = w.at(editTime)
	w.file("a file", "Other data, and more of it")
	w.chmod("a subdir", 0o700)
	w.remove("etc/deep")
	w.file("etc/passwd", "changed in place, under all its names\n")
	w.remove("etc/link")
	w.mkdir("etc/link")
	w.file("empty", "not any more")
	w.setxattr("empty", "user.note", []byte("x"))
	w.chown("setgid", 7, 8)
	w.rename("setgid", "etc/link/moved")
	w.chmod(".", 0o700)
}

func parentStaysUnchanged(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	child := l.filled(base, editOf)
	assertSameTree(t, want, l.scan(base), "the parent after its child was edited")
	require.NotEqual(t, want, l.scan(child))
	l.layer(child)
	l.diff(child, base)
	assertSameTree(t, want, l.scan(base), "the parent after a diff")
}

// parentIsSealed: a driver that declares it refuses every change to a layer that has become a parent. Any other
// driver keeps the child apart from such changes.
func parentIsSealed(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	child := l.layer(base)

	dir := l.get(base)
	path := func(name string) string { return tree{dir: dir}.path(name) }
	for name, change := range map[string]func() error{
		"write":  func() error { return os.WriteFile(path("a file"), []byte("x"), 0o644) },
		"create": func() error { return os.WriteFile(path("new"), []byte("x"), 0o644) },
		"mkdir":  func() error { return os.Mkdir(path("newdir"), 0o755) },
		"remove": func() error { return os.Remove(path("empty")) },
		"rename": func() error { return os.Rename(path("setgid"), path("renamed")) },
		"chmod":  func() error { return os.Chmod(path("etc"), 0o700) },
	} {
		if err := change(); c.SealsParents {
			assert.ErrorIs(t, err, unix.EROFS, "%s in a sealed layer", name)
		} else {
			assert.NoError(t, err, "%s in a layer that has become a parent", name)
		}
	}
	l.put(base)
	if c.SealsParents {
		assertSameTree(t, want, l.scan(base), "the sealed parent")
	}
	assertSameTree(t, want, l.scan(child), "the child")
}

func siblingsAreIsolated(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	one, other := l.layer(base), l.layer(base)

	l.edit(one, editOf)
	assertSameTree(t, want, l.scan(other), "a sibling of the edited layer")
	edited := l.scan(one)
	l.edit(other, func(w tree) {
		names := []string{"a subdir", "a file", "etc", "empty", "setgid"}
		for _, name := range slices.Backward(names) {
			w.remove(name)
		}
	})
	assertSameTree(t, edited, l.scan(one), "the edited layer")
	assertSameTree(t, edited, l.scan(l.layer(one)), "a child of the edited layer")
}
