package treediff

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestHintsRandom compares the hinted comparison with the walk over random changes to clones: the lists are equal
// except for files that only differ in their bytes. The walk is compared with go-archive once more.
func TestHintsRandom(t *testing.T) {
	testfs.CheckLeaks(t)
	mnt := testfs.Btrfs(t)
	for i := range 60 {
		limitOpen(t, []int{1, 2, 32}[i%3])
		seed := rand.Uint64()
		base, top := filepath.Join(mnt, "base"), filepath.Join(mnt, "top")
		subvolume(t, "create", base)
		newForest(t, seed, base).change(100)
		snapshot(t, base, top)
		f := newForest(t, seed+1, top)
		f.change(1 + f.IntN(40))

		walk := mustCompare(t, top, base, nil)
		ok := assertLists(t, changesDirs(t, top, base), walk, "walk, seed %d", seed)
		want := withContent(t, walk, top, base)
		hints := hintsBetween(t, top, base)
		ok = ok && assertLists(t, want, mustCompare(t, top, base, hints), "hints, seed %d", seed)
		addNoise(f, hints)
		ok = ok && assertLists(t, want, mustCompare(t, top, base, hints), "hints with noise, seed %d", seed)
		if !ok {
			return
		}
		subvolume(t, "delete", top)
		subvolume(t, "delete", base)
	}
}

// addNoise hints at much that did not change or does not exist.
func addNoise(f *forest, h *Hints) {
	all, _ := f.paths()
	for range 30 {
		path := strings.TrimPrefix(all[f.IntN(len(all))], f.root)
		switch f.IntN(4) {
		case 0:
			h.Add(path, Written|Deep)
		case 1:
			h.Add(path+"/a/b", Written)
		case 2:
			h.Add(path+"/../../../x", Deep)
		case 3:
			h.Add(path, 0)
		}
	}
}

// clone fills a subvolume and clones it.
func clone(t *testing.T, fill func(f tree)) (top, base string) {
	mnt := testfs.Btrfs(t)
	base = filepath.Join(mnt, "base")
	subvolume(t, "create", base)
	fill(tree{t, base})
	return snapshot(t, base, filepath.Join(mnt, "top")), base
}

func hints(paths ...string) *Hints {
	h := &Hints{}
	for _, path := range paths {
		h.Add(path, 0)
	}
	return h
}

// TestOnlyHintedIsLookedAt changes a clone behind the back of the hints. Changes without hints must not be seen,
// which shows that they are not looked at.
func TestOnlyHintedIsLookedAt(t *testing.T) {
	top, base := clone(t, func(f tree) { f.files("a/b/c", "a/b/d", "a/e/f", "g") })
	f := tree{t, top}
	f.chmod("a/b/c", 0o600)
	f.chmod("a/b/d", 0o600)
	f.chmod("a/e/f", 0o600)
	f.overwrite("g", 0, "C")
	f.files("new/x", "a/b/new")

	for _, c := range []struct {
		hints *Hints
		want  []string
	}{
		{&Hints{}, nil},
		{hints(""), nil},
		{hints("/"), nil},
		{hints("g"), nil}, // not hinted as written
		{hints("a"), nil},
		{hints("a/b/c"), []string{"C /a", "C /a/b", "C /a/b/c"}},
		{hints("//a///b/", "/a/e/f"), []string{"C /a", "C /a/e", "C /a/e/f"}},
		{hints("new"), []string{"A /new", "A /new/x"}},
		{hints("new/x"), []string{"A /new", "A /new/x"}},
		{hints("new/y"), []string{"A /new", "A /new/x"}},
		{hints("x", "x/y", "g/x", "g/x/y", "..", "../base", ".", "a/../g", "nul\x00", "a/nul\x00/b",
			strings.Repeat("n", 256), strings.Repeat("n", 5000)+"/x"), nil},
	} {
		assert.Equal(t, lines(c.want...), text(mustCompare(t, top, base, c.hints)))
	}

	deep := hints("g")
	deep.Add("a/b", Deep)
	assert.Equal(t, lines("C /a", "C /a/b", "C /a/b/c", "C /a/b/d", "A /a/b/new"), text(mustCompare(t, top, base, deep)))
	deep.Add("g", Written)
	deep.Add("/", Deep)
	assert.Equal(t, text(withContent(t, changesDirs(t, top, base), top, base)), text(mustCompare(t, top, base, deep)))
}

// TestHintsListNoDirectory checks that the cost of a hinted comparison does not depend on other entries of the
// directories: it lists no directory.
func TestHintsListNoDirectory(t *testing.T) {
	top, base := clone(t, func(f tree) { f.files("a/b/c", "a/b/d", "a/e/f", "g") })
	f := tree{t, top}
	f.overwrite("a/b/c", 0, "C")
	f.remove("a/e/f")
	h := hints("a/e/f")
	h.Add("a/b/c", Written)

	w := newWalk(top, base, h)
	changes, err := w.changeList(t.Context())
	require.NoError(t, err)
	require.Equal(t, lines("C /a", "C /a/b", "C /a/b/c", "C /a/e", "D /a/e/f"), text(changes))
	close(w.idle)
	require.NotEmpty(t, w.idle)
	for worker := range w.idle {
		assert.Nil(t, worker.lister.buf)
	}
}

// TestNestedSubvolumes checks that nested subvolumes are compared in full wherever a hint leads to one, and
// never by inode number: their roots all have 256, and their stubs in a snapshot 2.
func TestNestedSubvolumes(t *testing.T) {
	testfs.CheckLeaks(t)
	mnt := testfs.Btrfs(t)
	base, top := filepath.Join(mnt, "base"), filepath.Join(mnt, "top")
	subvolume(t, "create", base)
	b := tree{t, base}
	b.files("dir/file", "keep/file")
	subvolume(t, "create", b.abs("stub"))
	subvolume(t, "create", b.abs("both"))
	b.files("stub/x/y", "both/x/same", "both/x/edited", "both/x/gone")
	snapshot(t, base, top)
	f := tree{t, top}
	require.Equal(t, uint64(2), lstat(t, f.abs("stub")).Ino)
	require.NoError(t, os.Remove(f.abs("both")))
	subvolume(t, "create", f.abs("both"))
	subvolume(t, "create", f.abs("new"))
	f.files("both/x/same", "both/x/edited", "new/x/y", "keep/new")
	f.file("both/x/edited", "CONTENT")
	require.Equal(t, uint64(256), lstat(t, f.abs("both")).Ino)

	want := []string{"C /both", "C /both/x", "C /both/x/edited", "D /both/x/gone",
		"A /new", "A /new/x", "A /new/x/y", "C /stub", "D /stub/x"}
	h := hints("new", "both", "stub")
	assert.Equal(t, lines(want...), text(mustCompare(t, top, base, h)))
	assert.Equal(t, lines(want...), text(mustCompare(t, top, base, hints("new/a", "both/a", "stub/a"))))

	// The other way round the content of the stub appears.
	want = []string{"C /both", "C /both/x", "C /both/x/edited", "A /both/x/gone",
		"D /new", "C /stub", "A /stub/x", "A /stub/x/y"}
	assert.Equal(t, lines(want...), text(mustCompare(t, base, top, h)))

	// And the walk enters all of them.
	assert.Equal(t, text(changesDirs(t, top, base)), text(mustCompare(t, top, base, nil)))
	assert.Contains(t, text(mustCompare(t, top, base, nil)), lines("A /new/x/y"))
}

// TestSubvolumeIDIsNoInode compares two directories of one subvolume in which the entry of a nested subvolume
// has the same d_ino as a directory: the number of a subvolume there, of an inode here.
func TestSubvolumeIDIsNoInode(t *testing.T) {
	f := tree{t, testfs.Btrfs(t)}
	f.dir("top", "base", "spare")
	for i := range 20 {
		f.dir("spare/" + strconv.Itoa(i))
	}
	inodes := make(map[uint64]string)
	for i := range 20 {
		path := "spare/" + strconv.Itoa(i)
		inodes[lstat(t, f.abs(path)).Ino] = path
	}
	dirIno := func(dir string) uint64 {
		fd, err := openRoot(f.abs(dir))
		require.NoError(t, err)
		defer unix.Close(fd)
		entries, err := new(lister).list(fd, nil)
		require.NoError(t, err)
		require.Len(t, entries, 1)
		return entries[0].ino
	}
	for range 20 {
		subvolume(t, "create", f.abs("top/x"))
		spare, ok := inodes[dirIno("top")]
		if !ok {
			subvolume(t, "delete", f.abs("top/x"))
			continue
		}
		f.rename(spare, "base/x")
		require.Equal(t, dirIno("top"), dirIno("base"))
		f.files("top/x/file")
		assert.Equal(t, lines("C /x", "A /x/file"), text(mustCompare(t, f.abs("top"), f.abs("base"), nil)))
		return
	}
	t.Fatal("no subvolume has the number of an inode")
}

// TestMounts checks that mounts in a tree are part of it, also where they hide the same inode.
func TestMounts(t *testing.T) {
	testfs.CheckLeaks(t)
	top, base := clone(t, func(f tree) { f.files("a/file", "b/file", "c/file") })
	f := tree{t, top}
	require.NoError(t, unix.Mount("tmpfs", f.abs("a"), "tmpfs", 0, ""))
	defer unix.Unmount(f.abs("a"), 0)
	f.files("a/x/y")
	want := changesDirs(t, top, base)
	require.Contains(t, text(want), lines("D /a/file", "A /a/x", "A /a/x/y"))
	assertLists(t, want, mustCompare(t, top, base, nil))
	assertLists(t, want, mustCompare(t, top, base, hints("a")))
	assertLists(t, want, mustCompare(t, top, base, hints("a/file")))
}

// TestReusedInode checks that a directory that got the inode number of another is not taken for its clone.
func TestReusedInode(t *testing.T) {
	w := newWalk("", "", nil)
	w.roots[top].id.dev, w.roots[base].id.dev = 1, 2
	early, late := unix.StatxTimestamp{Sec: 5, Nsec: 1}, unix.StatxTimestamp{Sec: 5, Nsec: 2}
	for _, c := range []struct {
		a, b inode
		want bool
	}{
		{inode{1, 300, early}, inode{2, 300, early}, true},
		{inode{1, 300, early}, inode{2, 300, late}, false},
		{inode{1, 300, early}, inode{2, 300, noTime}, true},
		{inode{1, 300, early}, inode{2, 301, early}, false},
		{inode{1, 300, early}, inode{3, 300, early}, false},
		{inode{3, 300, early}, inode{2, 300, early}, false},
	} {
		assert.Equal(t, c.want, w.cloned(c.a, c.b), "%v %v", c.a, c.b)
	}
}

// TestUnrelatedTrees checks that hints do not make unrelated trees equal as long as they have other roots.
func TestUnrelatedTrees(t *testing.T) {
	dir := t.TempDir()
	a, b := tree{t, filepath.Join(dir, "a")}, tree{t, filepath.Join(dir, "b")}
	a.files("x/y")
	time.Sleep(20 * time.Millisecond) // more than a tick of the kernel's clock: roots made at one time are taken for clones
	b.files("x/z")
	assert.Equal(t, lines("C /x", "A /x/y", "D /x/z"), text(mustCompare(t, a.root, b.root, &Hints{})))
	assert.Equal(t, lines("A /x", "A /x/y"), text(mustCompare(t, a.root, "", &Hints{})))
}

func TestHintsLen(t *testing.T) {
	h := &Hints{}
	assert.Equal(t, 0, h.Len())
	for i := range 3 {
		h.Add("a/b/"+strconv.Itoa(i), 0)
		h.Add("/a//b/"+strconv.Itoa(i)+"/", Written)
	}
	assert.Equal(t, 3, h.Len())
	h.Add("a", 0)
	h.Add("", Deep)
	assert.Equal(t, 5, h.Len())
}
