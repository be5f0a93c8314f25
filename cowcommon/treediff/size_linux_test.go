package treediff

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

func mustSize(t testing.TB, top string, changes []archive.Change) int64 {
	t.Helper()
	size, err := Size(t.Context(), top, changes)
	require.NoError(t, err)
	return size
}

func TestSize(t *testing.T) {
	testfs.CheckLeaks(t)
	f := tree{t, t.TempDir()}
	f.file("a/ten", "0123456789")
	f.file("a/b/three", "123")
	f.file("linked", "12345")
	f.link("linked", "a/again")
	f.link("linked", "a/b/again")
	f.symlink("a/ten", "symlink")
	f.symlink("a", "dirlink")
	f.node("fifo", unix.S_IFIFO|0o600, 0)
	require.NoError(t, os.Truncate(f.abs("a/ten"), 1<<40))

	add, modify, remove := archive.ChangeType(archive.ChangeAdd), archive.ChangeType(archive.ChangeModify), archive.ChangeType(archive.ChangeDelete)
	for _, c := range []struct {
		name    string
		changes []archive.Change
		want    int64
	}{
		{"nothing", nil, 0},
		{"added", []archive.Change{{Path: "/a/b/three", Kind: add}}, 3},
		{"modified", []archive.Change{{Path: "/a/b/three", Kind: modify}}, 3},
		{"deleted", []archive.Change{{Path: "/a/b/three", Kind: remove}}, 0},
		{"sparse", []archive.Change{{Path: "/a/ten", Kind: add}}, 1 << 40},
		{"directories alone", []archive.Change{{Path: "/a", Kind: modify}, {Path: "/a/b", Kind: add}}, 0},
		{"root", []archive.Change{{Path: "/", Kind: modify}}, 0},
		{"one inode, three names", []archive.Change{
			{Path: "/linked", Kind: add}, {Path: "/a/again", Kind: add}, {Path: "/a/b/again", Kind: modify},
		}, 5},
		{"one name twice", []archive.Change{{Path: "/a/b/three", Kind: add}, {Path: "a/b/three", Kind: modify}}, 3},
		{"no regular file", []archive.Change{{Path: "/symlink", Kind: add}, {Path: "/fifo", Kind: add}}, 0},
		{"not there", []archive.Change{{Path: "/none", Kind: add}, {Path: "/none/x", Kind: add}, {Path: "/linked/x", Kind: add}}, 0},
		{"through links or up", []archive.Change{
			{Path: "/dirlink/b/three", Kind: add}, {Path: "/a/../linked", Kind: add}, {Path: "/../etc/passwd", Kind: add},
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, c.want, mustSize(t, f.root, c.changes))
		})
	}
}

// TestSizeRandom holds Size to go-archive's ChangesSize, which counts the targets of symbolic links too.
func TestSizeRandom(t *testing.T) {
	testfs.CheckLeaks(t)
	for range 10 {
		seed := rand.Uint64()
		root := memDir(t)
		newForest(t, seed, root).change(150)
		changes := mustCompare(t, root, "", nil)
		var notLinks []archive.Change
		for _, c := range changes {
			if lstat(t, root+c.Path).Mode&unix.S_IFMT != unix.S_IFLNK {
				notLinks = append(notLinks, c)
			}
		}
		require.Equal(t, archive.ChangesSize(root, notLinks), mustSize(t, root, changes), "seed %d", seed)
	}
}

// FuzzSize asks for the size of whatever a change list may name. Only the files of the tree can count, each
// once.
func FuzzSize(f *testing.F) {
	for _, seed := range []string{
		"/file\n/dir/file", "/dir/../../outside/secret", "/link/secret", "//dir//file/", "/dir/file\x00/x", ".", "..",
		"/" + strings.Repeat("n", 300) + "/x", strings.Repeat("/dir", 3000), "\xff\n/\xfe",
	} {
		f.Add(seed)
	}
	dir := f.TempDir()
	top, outside := tree{f, filepath.Join(dir, "top")}, tree{f, filepath.Join(dir, "outside")}
	top.file("file", "1")
	top.file("dir/file", "22")
	outside.file("secret", strings.Repeat("x", 1000))
	top.symlink("../outside", "link")
	f.Fuzz(func(t *testing.T, paths string) {
		var changes []archive.Change
		for path := range strings.SplitSeq(paths, "\n") {
			changes = append(changes, archive.Change{Path: path, Kind: archive.ChangeAdd})
		}
		size, err := Size(context.Background(), top.root, changes)
		require.NoError(t, err)
		require.LessOrEqual(t, size, int64(3))
	})
}
