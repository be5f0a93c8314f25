package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// treeNode is a file of a tree.
type treeNode struct {
	unix.Statx_t
	path string // absolute
}

// id tells inodes apart, also inodes with one number in two trees that are not clones of each other.
func (n treeNode) id() inodeID { return inodeID{n.Ino, n.Btime} }

type inodeID struct {
	ino   uint64
	btime unix.StatxTimestamp
}

// readTree maps each path of a tree, relative to its root, to the file there. The root is "".
func readTree(t testing.TB, root string) map[string]treeNode {
	t.Helper()
	tree := make(map[string]treeNode)
	require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n := treeNode{path: path}
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &n.Statx_t); err != nil {
			return err
		}
		tree[strings.TrimPrefix(strings.TrimPrefix(path, root), "/")] = n
		return nil
	}))
	return tree
}

// requireHinted is checkHinted for a stream that the kernel can make and that can be replayed.
func requireHinted(t testing.TB, s *sender, base, top string) recorded {
	t.Helper()
	got, err := checkHinted(t, s, base, top)
	require.NoError(t, err)
	return got
}

// checkHinted replays the stream from base to top. If that is possible, it compares the hints with the two trees.
func checkHinted(t testing.TB, s *sender, base, top string) (recorded, error) {
	t.Helper()
	stream, err := s.trySend(base, top, btrfsctl.SendNoFileData, 1)
	if err != nil {
		return recorded{}, err
	}
	got, err := record(stream, namesIn(base), namesIn(top))
	if err != nil {
		return got, err
	}
	c := comparison{base: readTree(t, base), top: readTree(t, top), hints: got.hints}
	c.addLinks(t, got.changed)

	for path := range c.paths() {
		if !c.differs(path) && !c.changed(path) {
			continue
		}
		assert.True(t, c.covers(path), "%q is not hinted: inode %d in base, %d in top", path, c.base[path].Ino, c.top[path].Ino)
		if !c.differs(path) && c.top[path].Mode&unix.S_IFMT == unix.S_IFREG && !sameBytes(t, c.base[path].path, c.top[path].path) {
			assert.NotZero(t, got.hints[path]&treediff.Written, "%q was written, but is not hinted as such", path)
		}
	}
	assert.LessOrEqual(t, len(got.hints), 3*c.changes()+8, "hints out of proportion: %v", got.hints)
	return got, nil
}

// namesIn returns a function that reports whether the root of a tree has a name.
func namesIn(root string) rootNames {
	return func(name string) bool {
		_, err := os.Lstat(filepath.Join(root, name))
		return err == nil
	}
}

// comparison is two trees that share inode numbers, and the hints about them.
type comparison struct {
	base, top map[string]treeNode
	hints     map[string]treediff.Flags
}

// addLinks does the backend's part: it hints at all names of the inodes that may have names unknown to a replay.
func (c comparison) addLinks(t testing.TB, changed []changedInode) {
	t.Helper()
	names := make(map[uint64][]string)
	for path, n := range c.top {
		names[n.Ino] = append(names[n.Ino], path)
	}
	for _, inode := range changed {
		n, ok := c.top[inode.path]
		require.True(t, ok, "changed inode %q is not in top", inode.path)
		require.Equal(t, inode.flags, c.hints[inode.path]&inode.flags)
		for _, path := range names[n.Ino] {
			c.hints[path] |= inode.flags
		}
	}
}

// paths returns the paths of both trees.
func (c comparison) paths() map[string]bool {
	paths := make(map[string]bool)
	for path := range c.base {
		paths[path] = true
	}
	for path := range c.top {
		paths[path] = true
	}
	return paths
}

// differs reports whether a path has another inode in each tree, or exists in one tree only.
func (c comparison) differs(path string) bool {
	b, inBase := c.base[path]
	t, inTop := c.top[path]
	return inBase != inTop || b.id() != t.id()
}

// changed reports whether the inode that a path has in both trees was changed.
func (c comparison) changed(path string) bool {
	b, t := c.base[path], c.top[path]
	return b.Ctime != t.Ctime || b.Mtime != t.Mtime || b.Size != t.Size || b.Mode != t.Mode || b.Uid != t.Uid ||
		b.Gid != t.Gid || b.Nlink != t.Nlink
}

// covers reports whether a path is hinted. If a directory above is another in each tree, it reports whether that
// directory is hinted: all below it is compared then.
func (c comparison) covers(path string) bool {
	for i := range len(path) {
		if dir := path[:i]; path[i] == '/' && c.differs(dir) {
			path = dir
			break
		}
	}
	_, hinted := c.hints[path]
	return hinted
}

// changes counts the names that differ between directories of the same inode number. It adds the names of changed
// inodes.
func (c comparison) changes() int {
	type entry struct {
		dir  uint64
		name string
	}
	entries := func(tree map[string]treeNode) map[entry]uint64 {
		m := make(map[entry]uint64, len(tree))
		for path, n := range tree {
			if path != "" {
				m[entry{tree[filepath.Dir("/" + path)[1:]].Ino, filepath.Base(path)}] = n.Ino
			}
		}
		return m
	}
	b, t := entries(c.base), entries(c.top)
	var n int
	for e, ino := range b {
		if t[e] != ino {
			n++
		}
	}
	for e := range t {
		if b[e] == 0 {
			n++
		}
	}
	ctimes := make(map[uint64]unix.StatxTimestamp)
	for _, node := range c.base {
		ctimes[node.Ino] = node.Ctime
	}
	for _, node := range c.top {
		if ctim, ok := ctimes[node.Ino]; ok && ctim != node.Ctime {
			n++
		}
	}
	return n
}

func sameBytes(t testing.TB, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	require.NoError(t, err)
	y, err := os.ReadFile(b)
	require.NoError(t, err)
	return bytes.Equal(x, y)
}

// TestReplayOfRandomChanges changes a tree at random, again and again, and compares each replay with the trees.
// COWSHED_TEST_SEED repeats a run.
func TestReplayOfRandomChanges(t *testing.T) {
	s := newSender(t)
	seed := testSeed(t)
	m := &mutator{t: t, rand: rand.New(rand.NewPCG(seed, 0)), root: s.create("work")}
	for range 60 {
		m.step()
	}
	s.snapshot(m.root, "base-0", true)
	for round := range rounds(40) {
		m.log = nil
		for range 1 + m.rand.IntN(40) {
			m.step()
		}
		base, top := fmt.Sprintf("base-%d", round), fmt.Sprintf("base-%d", round+1)
		s.snapshot(m.root, top, true)
		requireHinted(t, s, filepath.Join(s.dir, base), filepath.Join(s.dir, top))
		s.destroy(base)
		if t.Failed() {
			t.Fatalf("seed %d, round %d:\n%s", seed, round, strings.Join(m.log, "\n"))
		}
	}
}

// rounds is the number of repetitions of a random test, which is smaller in a short run.
func rounds(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}

// testSeed returns the seed of a random test and prints it.
func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("COWSHED_TEST_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("COWSHED_TEST_SEED=%d", seed)
	return seed
}

// TestReplayOfScenarios has changes that are hard to follow, each on a tree of its own.
func TestReplayOfScenarios(t *testing.T) {
	s := newSender(t)
	for i, tc := range []struct {
		name   string
		base   string   // shell commands in the root of the tree
		top    string   // shell commands that change base to top
		hinted []string // paths that must be among the hints
		max    int      // most hints
	}{
		{
			name: "nothing", base: "mkdir d; echo x >d/f", top: ":",
			max: 0,
		},
		{
			name: "file renamed away and another made in its place", // snapper#321
			base: "echo a >a", top: "mv a b; echo b >a",
			hinted: []string{"a", "b"}, max: 3,
		},
		{
			name: "directory renamed and another made in its place, with the same names below", // snapper#321
			base: "mkdir -p d/e; echo 1 >d/e/f; echo 2 >d/g", top: "mv d old; mkdir -p d/e; echo 3 >d/e/f",
			hinted: []string{"d", "old"}, max: 8,
		},
		{
			name: "directories swapped", base: "mkdir a b; echo 1 >a/f; echo 2 >b/f", top: "mv a t; mv b a; mv t b",
			hinted: []string{"a", "b"}, max: 3,
		},
		{
			name: "directory swapped with its child", base: "mkdir -p a/b/c", top: "mv a/b t; mv a t/b; mv t a",
			hinted: []string{"a"}, max: 8,
		},
		{
			name: "names go round", base: "for i in 1 2 3 4 5; do echo $i >$i; done",
			top:    "mv 1 t; mv 2 1; mv 3 2; mv 4 3; mv 5 4; mv t 5",
			hinted: []string{"1", "2", "3", "4", "5"}, max: 6,
		},
		{
			name: "directories' names go round", base: "for i in 1 2 3 4 5; do mkdir $i; echo $i >$i/f; done",
			top:    "mv 1 t; mv 2 1; mv 3 2; mv 4 3; mv 5 4; mv t 5; echo x >3/f",
			hinted: []string{"1", "2", "3", "4", "5", "3/f"}, max: 7,
		},
		{
			name: "chain of renames", base: "mkdir -p a/b/c/d/e; echo 1 >a/b/c/d/e/f",
			top:    "mv a/b/c/d/e x; mv a/b/c/d x/y; mv a/b/c x/y/z; mv a/b x/y/z/w; rmdir a; echo 2 >x/f",
			hinted: []string{"x", "a", "x/f"}, max: 30,
		},
		{
			name: "child moved out, parent removed", base: "mkdir -p a/b/c; echo 1 >a/b/c/f; echo 2 >a/g",
			top:    "mv a/b/c c; rm -r a; echo 3 >>c/f",
			hinted: []string{"a", "a/g", "c", "c/f"}, max: 10,
		},
		{
			name: "tree turned upside down", base: "mkdir -p a/b/c/d", top: "mv a/b/c/d d; mv a/b/c d/c; mv a/b d/c/b; mv a d/c/b/a",
			hinted: []string{"a", "d"}, max: 30,
		},
		{
			name: "file to directory, directory to file", base: "echo f >a; mkdir b; echo g >b/f",
			top:    "rm a; mkdir a; echo h >a/f; rm -r b; echo i >b",
			hinted: []string{"a", "b"}, max: 8,
		},
		{
			name: "file to directory and back", base: "echo f >a", top: "rm a; mkdir a; rmdir a; echo f >a",
			hinted: []string{"a"}, max: 2,
		},
		{
			name: "hard link moved", base: "mkdir d e; echo 1 >d/f; ln d/f e/g", top: "mv e/g d/h; echo 2 >>d/f",
			hinted: []string{"d/f", "d/h", "e/g"}, max: 6,
		},
		{
			name: "one link of many changed", base: "echo 1 >a; for i in 1 2 3 4 5 6; do mkdir $i; ln a $i/l; done", top: "echo 2 >>3/l",
			hinted: []string{"a", "1/l", "6/l"}, max: 7,
		},
		{
			name: "first link removed", base: "mkdir d; echo 1 >a; ln a d/b", top: "rm a",
			hinted: []string{"a", "d/b"}, max: 4,
		},
		{
			name: "first link taken over", base: "echo 1 >a; ln a b; echo 2 >c", top: "mv c a",
			hinted: []string{"a", "b", "c"}, max: 4,
		},
		{
			name: "many taken over", base: "mkdir d; for i in $(seq 100); do echo $i >d/$i; echo new >d/n$i; done",
			top:    "for i in $(seq 100); do mv d/n$i d/$i; done",
			hinted: []string{"d/1", "d/100", "d/n1"}, max: 201,
		},
		{
			name: "many turned round", base: "mkdir d; for i in $(seq 100); do mkdir d/$i; echo $i >d/$i/f; done",
			top:    "mkdir e; for i in $(seq 100); do mv d/$i e/$((101-i)); done; rmdir d; mv e d",
			hinted: []string{"d"}, max: 500,
		},
		{
			name: "odd names", base: `mkdir "$(printf 'a\nb')"; echo 1 >"$(printf 'a\nb/\377\376')"; echo 2 >"$(printf %0255d 0)"`,
			top:    `echo 3 >>"$(printf 'a\nb/\377\376')"; mv "$(printf %0255d 0)" "$(printf 'a\nb/')$(printf %0255d 1)"`,
			hinted: []string{"a\nb/\xff\xfe", fmt.Sprintf("%0255d", 0), fmt.Sprintf("a\nb/%0255d", 1)}, max: 5,
		},
		{
			name: "someone's temporary names", base: "echo 1 >o257-7-0; echo 2 >o258-8-0; mkdir o300-9-0; echo 3 >o300-9-0/f",
			top:    "echo 4 >>o257-7-0; mv o258-8-0 o259-9-1; mv o300-9-0 o260-1-1; echo 5 >>o260-1-1/f; echo 6 >o1-1-1",
			hinted: []string{"o257-7-0", "o258-8-0", "o259-9-1", "o300-9-0", "o260-1-1", "o260-1-1/f", "o1-1-1"}, max: 9,
		},
		{
			name: "attributes", base: "for i in 1 2 3 4 5; do echo 1 >$i; done; setfattr -n user.x -v 1 4",
			top:    "chmod 600 1; chown 1:2 2; setfattr -n user.a -v b 3; setfattr -x user.x 4; touch -d @1 5",
			hinted: []string{"1", "2", "3", "4", "5"}, max: 5,
		},
		{
			name: "same size, same time", base: "echo 1 >a; touch -d @1 a", top: "echo 2 >a; touch -d @1 a",
			hinted: []string{"a"}, max: 1,
		},
		{
			name: "holes", base: "head -c 100000 /dev/zero | tr '\\0' x >a; cp a b; cp a c",
			top:    "fallocate -p -o 8192 -l 8192 a; truncate -s 50 b; truncate -s 200000 c",
			hinted: []string{"a", "b", "c"}, max: 3,
		},
		{
			name: "root changed", base: "echo 1 >a", top: "chmod 700 .",
			hinted: []string{""}, max: 1,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &sender{t: t, dir: s.dir, fd: s.fd}
			work := s.create(fmt.Sprintf("work-%d", i))
			shell(t, work, tc.base)
			base := s.snapshot(work, fmt.Sprintf("base-%d", i), true)
			shell(t, work, tc.top)
			top := s.snapshot(work, fmt.Sprintf("top-%d", i), true)
			got := requireHinted(t, s, base, top)
			for _, path := range tc.hinted {
				assert.Contains(t, got.hints, path)
			}
			assert.LessOrEqual(t, len(got.hints), tc.max, "%q", got.hints)
		})
	}
}

func shell(t testing.TB, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestReplayOfSiblings has two trees of which neither comes from the other. Such trees may give one inode number to two
// new inodes in one transaction. Kernels as late as 6.18 mistake these for one inode. Then they may send names that
// were never made, or fail (ENOENT). In such cases there must be no hints. They must be the exception.
func TestReplayOfSiblings(t *testing.T) {
	s := newSender(t)
	seed := testSeed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	m := &mutator{t: t, rand: r, root: s.create("work")}
	for range 60 {
		m.step()
	}
	const n = 10
	var fallbacks int
	for round := range n {
		var sides [2]string
		var logs [2][]string
		for i := range sides {
			name := fmt.Sprintf("side-%d-%d", round, i)
			side := &mutator{t: t, rand: r, root: s.snapshot(m.root, name, false)}
			for range 1 + r.IntN(30) {
				side.step()
			}
			sides[i], logs[i] = s.snapshot(side.root, name+"-ro", true), side.log
		}
		if _, err := checkHinted(t, s, sides[0], sides[1]); err != nil {
			require.True(t, errors.Is(err, treediff.ErrNoHints) || errors.Is(err, unix.ENOENT), "%v", err)
			t.Logf("round %d: %v", round, err)
			fallbacks++
		}
		if t.Failed() {
			t.Fatalf("seed %d, round %d:\n%s\n\n%s", seed, round, strings.Join(logs[0], "\n"), strings.Join(logs[1], "\n"))
		}
	}
	assert.Less(t, fallbacks, n/2)
}
