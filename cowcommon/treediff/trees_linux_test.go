package treediff

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// capNetRaw is a value of security.capability: cap_net_raw+ep, revision 2.
var capNetRaw = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// capChown is another: cap_chown+ep.
var capChown = []byte{1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// changesDirs is the oracle: go-archive's list, sorted.
func changesDirs(t testing.TB, top, base string) []archive.Change {
	t.Helper()
	changes, err := archive.ChangesDirs(top, base)
	require.NoError(t, err)
	slices.SortFunc(changes, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) })
	return changes
}

// text writes a change list as lines such as "A /etc/passwd".
func text(changes []archive.Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %q\n", c.Kind, c.Path)
	}
	return b.String()
}

// lines is the text of a change list written by hand: "A /etc/passwd", "D /tmp".
func lines(want ...string) string {
	var changes []archive.Change
	for _, line := range want {
		kind := map[byte]archive.ChangeType{
			'A': archive.ChangeAdd, 'C': archive.ChangeModify, 'D': archive.ChangeDelete,
		}[line[0]]
		changes = append(changes, archive.Change{Kind: kind, Path: line[2:]})
	}
	return text(changes)
}

func mustCompare(t testing.TB, top, base string, hints *Hints) []archive.Change {
	t.Helper()
	changes, err := Compare(t.Context(), top, base, hints)
	require.NoError(t, err)
	return changes
}

// copyTree copies a tree with everything that the comparison looks at, to a directory that is not there yet.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// snapshot clones a subvolume, waits until changes to the clone get another time of change than anything in
// it has, and returns the clone's path.
func snapshot(t testing.TB, base, top string) string {
	t.Helper()
	subvolume(t, "snapshot", base, top)
	var latest time.Time
	require.NoError(t, filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			if ctime := lstat(t, path).Ctim; time.Unix(ctime.Unix()).After(latest) {
				latest = time.Unix(ctime.Unix())
			}
		}
		return err
	}))
	probe := filepath.Join(filepath.Dir(top), "probe")
	for {
		require.NoError(t, os.WriteFile(probe, nil, 0o600))
		if ctime := lstat(t, probe).Ctim; time.Unix(ctime.Unix()).After(latest) {
			break
		}
	}
	require.NoError(t, os.Remove(probe))
	return top
}

// subvolume runs btrfs subvolume.
func subvolume(t testing.TB, args ...string) {
	t.Helper()
	out, err := exec.Command("btrfs", append([]string{"subvolume"}, args...)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func lstat(t testing.TB, path string) *unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st), path)
	return &st
}

// place is where an inode is linked: a name in a directory, which is given by its inode.
type place struct {
	dir  uint64
	name string
}

// scan has the facts about a tree that hintsBetween needs.
type scan struct {
	paths  map[string]*unix.Stat_t
	places map[place]uint64
}

func scanTree(t testing.TB, root string) scan {
	t.Helper()
	s := scan{paths: make(map[string]*unix.Stat_t), places: make(map[place]uint64)}
	dev := lstat(t, root).Dev
	require.NoError(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := lstat(t, path)
		if st.Dev != dev {
			return filepath.SkipDir
		}
		s.paths[strings.TrimPrefix(path, root)] = st
		if path != root {
			s.places[place{lstat(t, filepath.Dir(path)).Ino, filepath.Base(path)}] = st.Ino
		}
		return nil
	}))
	return s
}

// hintsBetween makes the fewest hints that the contract of [Hints] asks for: names that a directory got, lost
// or has for another inode, and all names of inodes that changed. A directory that was moved brings its
// entries along without a hint.
func hintsBetween(t testing.TB, top, base string) *Hints {
	t.Helper()
	h := &Hints{}
	a, b := scanTree(t, top), scanTree(t, base)
	inodes := func(s scan) map[uint64]*unix.Stat_t {
		m := make(map[uint64]*unix.Stat_t)
		for _, st := range s.paths {
			m[st.Ino] = st
		}
		return m
	}
	now, before := inodes(a), inodes(b)
	add := func(s, other scan, root string) {
		for path, st := range s.paths {
			var flags Flags
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				flags = Written
			}
			x, y := now[st.Ino], before[st.Ino]
			if x == nil || y == nil || x.Ctim != y.Ctim {
				h.Add(path, flags)
			}
			if path == "" {
				continue
			}
			at := place{lstat(t, filepath.Dir(root+path)).Ino, filepath.Base(path)}
			if ino, ok := other.places[at]; !ok || ino != st.Ino {
				h.Add(path, 0)
			}
		}
	}
	add(a, b, top)
	add(b, a, base)
	return h
}

// withContent adds to the walk's list the files that it cannot see: those that seem equal and are not.
func withContent(t testing.TB, changes []archive.Change, top, base string) []archive.Change {
	t.Helper()
	listed := make(map[string]bool)
	for _, c := range changes {
		listed[c.Path] = true
	}
	changes = slices.Clone(changes)
	require.NoError(t, filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, top)
		if listed[rel] || !e.Type().IsRegular() && e.Type() != fs.ModeSymlink || sameContent(t, path, base+rel) {
			return nil
		}
		for ; rel != "/" && !listed[rel]; rel = filepath.Dir(rel) {
			changes = append(changes, archive.Change{Path: rel, Kind: archive.ChangeModify})
			listed[rel] = true
		}
		return nil
	}))
	slices.SortFunc(changes, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) })
	return changes
}

func sameContent(t testing.TB, a, b string) bool {
	t.Helper()
	if lstat(t, a).Mode&unix.S_IFMT == unix.S_IFLNK {
		x, err := os.Readlink(a)
		require.NoError(t, err)
		y, err := os.Readlink(b)
		require.NoError(t, err)
		return x == y
	}
	x, err := os.ReadFile(a)
	require.NoError(t, err)
	y, err := os.ReadFile(b)
	require.NoError(t, err)
	return bytes.Equal(x, y)
}

// forest makes random trees and changes them.
type forest struct {
	*rand.Rand
	t    testing.TB
	root string
}

func newForest(t testing.TB, seed uint64, root string) *forest {
	root, err := filepath.EvalSymlinks(root)
	require.NoError(t, err)
	return &forest{Rand: rand.New(rand.NewPCG(seed, 0)), t: t, root: root}
}

// names are few, so that operations meet, and among them are those that sort or print oddly.
var names = []string{
	"a", "b", "c", "d", "e", "a-", "a.b", "a b", "A", "\xff\xfe", "new\nline", "é",
	".wh.a", ".wh..wh..opq", "-", "..a", "*", `\`, strings.Repeat("n", 255),
}

func (f *forest) name() string { return names[f.IntN(len(names))] }

// paths lists the paths of the tree, the root first.
func (f *forest) paths() (all, dirs []string) {
	require.NoError(f.t, filepath.WalkDir(f.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all = append(all, path)
		if e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	}))
	return all, dirs
}

// times are few and some are equal by the rule for nanoseconds.
func (f *forest) time() time.Time {
	return time.Unix(1_000_000_000+int64(f.IntN(2)), []int64{0, 1, 500}[f.IntN(3)])
}

// change applies n random operations. Those that cannot be done are skipped: a directory moved into itself.
func (f *forest) change(n int) {
	var all, dirs []string
	for i := range n {
		if i%8 == 0 {
			all, dirs = f.paths()
		}
		f.step(all[f.IntN(len(all))], dirs[f.IntN(len(dirs))]+"/"+f.name())
	}
}

// step does something to an old path, or makes a fresh one. Neither need be possible any more.
func (f *forest) step(old, fresh string) {
	var st unix.Stat_t
	if !f.inside(old) || !f.inside(fresh) || unix.Lstat(old, &st) != nil || len(fresh) > len(f.root)+1000 {
		return
	}
	isRoot, isFile, isLink := old == f.root, st.Mode&unix.S_IFMT == unix.S_IFREG, st.Mode&unix.S_IFMT == unix.S_IFLNK

	switch f.IntN(20) {
	case 0, 1, 2:
		_ = os.Mkdir(fresh, 0o755)
	case 3, 4, 5:
		const flags = os.O_CREATE | os.O_TRUNC | os.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
		if st, err := os.Lstat(fresh); err == nil && !st.Mode().IsRegular() {
			break
		}
		file, err := os.OpenFile(fresh, flags, 0o644)
		require.NoError(f.t, err)
		_, err = file.Write(f.content())
		require.NoError(f.t, err)
		require.NoError(f.t, file.Close())
		f.setTime(fresh)
	case 6:
		if os.Symlink([]string{"a", "b", "../a", "/nowhere", ".", fresh}[f.IntN(6)], fresh) == nil {
			f.setTime(fresh)
		}
	case 7:
		if isFile || isLink {
			_ = os.Link(old, fresh)
		}
	case 8:
		mode := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}[f.IntN(4)]
		if unix.Mknod(fresh, mode|0o600, int(unix.Mkdev(1, uint32(3+2*f.IntN(2))))) == nil {
			f.setTime(fresh)
		}
	case 9, 10:
		if !isRoot {
			_ = unix.Rename(old, fresh)
		}
	case 11:
		if !isRoot {
			_ = unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, fresh, unix.RENAME_EXCHANGE)
		}
	case 12:
		if !isRoot {
			require.NoError(f.t, os.RemoveAll(old))
		}
	case 13:
		if !isLink && !isRoot {
			mode := []uint32{0o600, 0o644, 0o755, 0o4755, 0o1777}[f.IntN(5)]
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				mode |= 0o100 // for users other than root
			}
			require.NoError(f.t, unix.Chmod(old, mode))
		}
	case 14:
		if os.Geteuid() == 0 {
			require.NoError(f.t, os.Lchown(old, f.IntN(2), f.IntN(2)))
		}
	case 15:
		if os.Geteuid() == 0 {
			value := [][]byte{capNetRaw, capChown}[f.IntN(2)]
			require.NoError(f.t, unix.Lsetxattr(old, capabilityXattr, value, 0))
		}
	case 16:
		_ = unix.Lremovexattr(old, capabilityXattr)
	case 17:
		f.setTime(old)
	case 18, 19: // bytes, and nothing that a walk sees
		if isFile && st.Size > 0 {
			file, err := os.OpenFile(old, os.O_RDWR, 0)
			require.NoError(f.t, err)
			_, err = file.WriteAt([]byte{byte(f.IntN(3))}, f.Int64N(st.Size))
			require.NoError(f.t, err)
			require.NoError(f.t, file.Close())
			f.restoreTime(old, &st)
		}
	}
}

// inside reports whether there still are directories, and no symbolic links, on the way to a path.
func (f *forest) inside(path string) bool {
	if path == f.root {
		return true
	}
	dir := filepath.Dir(path)
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil || resolved != dir {
		return false
	}
	st, err := os.Lstat(dir)
	return err == nil && st.IsDir()
}

func (f *forest) content() []byte {
	return bytes.Repeat([]byte{byte(f.IntN(3))}, []int{0, 1, 10, 5000}[f.IntN(4)])
}

func (f *forest) setTime(path string) {
	mtime := f.time()
	ts := []unix.Timespec{unix.NsecToTimespec(mtime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}
	require.NoError(f.t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
}

func (f *forest) restoreTime(path string, st *unix.Stat_t) {
	ts := []unix.Timespec{st.Atim, st.Mtim}
	require.NoError(f.t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// limitOpen makes workers keep very few directories open, so that small trees are deep ones.
func limitOpen(t testing.TB, n int) {
	old := openDirs
	openDirs = n
	t.Cleanup(func() { openDirs = old })
}

// assertLists compares two change lists with a readable difference.
func assertLists(t testing.TB, want, got []archive.Change, msg ...any) bool {
	t.Helper()
	return assert.Equal(t, text(want), text(got), msg...)
}

// memDir returns a directory of the test in memory, where there is tmpfs, for trees that take long to make.
func memDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "treediff-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		out, err := exec.Command("rm", "-rf", dir).CombinedOutput()
		assert.NoError(t, err, "%s", out)
	})
	return dir
}
