package treediff

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// tree makes and changes files by paths relative to a root.
type tree struct {
	t    testing.TB
	root string
}

func (f tree) abs(path string) string { return filepath.Join(f.root, path) }

// whole is a time of modification as image layers have it.
var whole = time.Unix(1_500_000_000, 0)

func (f tree) dir(paths ...string) {
	for _, path := range paths {
		require.NoError(f.t, os.MkdirAll(f.abs(path), 0o755))
	}
}

func (f tree) file(path, content string) {
	f.dir(filepath.Dir(path))
	require.NoError(f.t, os.WriteFile(f.abs(path), []byte(content), 0o644))
	f.mtime(path, whole)
}

func (f tree) files(paths ...string) {
	for _, path := range paths {
		f.file(path, "content")
	}
}

func (f tree) mtime(path string, at time.Time) {
	ts := []unix.Timespec{unix.NsecToTimespec(at.UnixNano()), unix.NsecToTimespec(at.UnixNano())}
	require.NoError(f.t, unix.UtimesNanoAt(unix.AT_FDCWD, f.abs(path), ts, unix.AT_SYMLINK_NOFOLLOW))
}

func (f tree) symlink(target, path string) {
	require.NoError(f.t, os.Symlink(target, f.abs(path)))
	f.mtime(path, whole)
}

func (f tree) link(old, path string) { require.NoError(f.t, os.Link(f.abs(old), f.abs(path))) }

func (f tree) node(path string, mode uint32, dev uint64) {
	require.NoError(f.t, unix.Mknod(f.abs(path), mode, int(dev)))
	f.mtime(path, whole)
}

func (f tree) rename(old, path string) { require.NoError(f.t, os.Rename(f.abs(old), f.abs(path))) }

func (f tree) swap(a, b string) {
	require.NoError(f.t, unix.Renameat2(unix.AT_FDCWD, f.abs(a), unix.AT_FDCWD, f.abs(b), unix.RENAME_EXCHANGE))
}

func (f tree) remove(paths ...string) {
	for _, path := range paths {
		require.NoError(f.t, os.RemoveAll(f.abs(path)))
	}
}

func (f tree) chmod(path string, mode uint32) { require.NoError(f.t, unix.Chmod(f.abs(path), mode)) }

func (f tree) chown(path string, uid, gid int) {
	require.NoError(f.t, os.Lchown(f.abs(path), uid, gid))
}

func (f tree) xattr(path, name string, value []byte) {
	require.NoError(f.t, unix.Lsetxattr(f.abs(path), name, value, 0))
}

// overwrite changes bytes in place and puts the time of modification back.
func (f tree) overwrite(path string, at int64, bytes string) {
	file, err := os.OpenFile(f.abs(path), os.O_WRONLY, 0)
	require.NoError(f.t, err)
	st := lstat(f.t, f.abs(path))
	_, err = file.WriteAt([]byte(bytes), at)
	require.NoError(f.t, err)
	require.NoError(f.t, file.Close())
	f.mtime(path, time.Unix(st.Mtim.Unix()))
}

// corpus holds small cases in which a comparison is easily wrong.
var corpus = []struct {
	name   string
	base   func(f tree)
	change func(f tree)
	want   []string
	hidden []string // listed with hints instead of want, where a walk cannot see it
}{
	{
		name:   "nothing",
		base:   func(f tree) { f.files("a/b", "c") },
		change: func(f tree) {},
	},
	{
		name:   "root is never listed",
		base:   func(f tree) {},
		change: func(f tree) { f.chmod("", 0o700); f.mtime("", whole) },
	},
	{
		name:   "add, modify, delete list their parents",
		base:   func(f tree) { f.files("a/a/a", "b/b/b", "c/c/c", "d/d/d") },
		change: func(f tree) { f.file("a/a/new", "x"); f.file("b/b/b", "longer content"); f.remove("c/c/c") },
		want: []string{"C /a", "C /a/a", "A /a/a/new", "C /b", "C /b/b", "C /b/b/b",
			"C /c", "C /c/c", "D /c/c/c"},
	},
	{
		name:   "order is that of bytes, not of names",
		base:   func(f tree) { f.dir("a") },
		change: func(f tree) { f.files("a/x", "a-/x", "a.b", "a0") },
		want:   []string{"C /a", "A /a-", "A /a-/x", "A /a.b", "A /a/x", "A /a0"},
	},
	{
		name:   "delete names only the top of a removed tree",
		base:   func(f tree) { f.files("a/b/c/d", "a/b/e") },
		change: func(f tree) { f.remove("a/b") },
		want:   []string{"C /a", "D /a/b"},
	},
	{
		name:   "directory to file",
		base:   func(f tree) { f.files("a/b/c", "a/d") },
		change: func(f tree) { f.remove("a"); f.file("a", "") },
		want:   []string{"C /a"},
	},
	{
		name:   "file to directory",
		base:   func(f tree) { f.files("a") },
		change: func(f tree) { f.remove("a"); f.files("a/b/c", "a/d") },
		want:   []string{"C /a", "A /a/b", "A /a/b/c", "A /a/d"},
	},
	{
		name:   "directory to symlink to a like directory",
		base:   func(f tree) { f.files("a/b", "real/b") },
		change: func(f tree) { f.remove("a"); f.symlink("real", "a") },
		want:   []string{"C /a"},
	},
	{
		name:   "symlink to directory becomes directory",
		base:   func(f tree) { f.files("real/b"); f.symlink("real", "a") },
		change: func(f tree) { f.remove("a"); f.files("a/b") },
		want:   []string{"C /a", "A /a/b"},
	},
	{
		name: "symlink loops",
		base: func(f tree) { f.symlink("b", "a"); f.symlink("a", "b"); f.symlink(".", "c"); f.symlink("/", "d") },
		change: func(f tree) {
			f.remove("a", "c")
			f.symlink("loop", "a")
			f.symlink("c", "c")
			f.mtime("c", whole.Add(time.Second))
		},
		want: []string{"C /a", "C /c"},
	},
	{
		name:   "symlink with another target of the same length",
		base:   func(f tree) { f.symlink("one", "a") },
		change: func(f tree) { f.remove("a"); f.symlink("two", "a") },
		hidden: []string{"C /a"},
	},
	{
		name:   "rename of a file",
		base:   func(f tree) { f.files("a/b", "c/d") },
		change: func(f tree) { f.rename("a/b", "c/b") },
		want:   []string{"C /a", "D /a/b", "C /c", "A /c/b"},
	},
	{
		name:   "rename of a directory",
		base:   func(f tree) { f.files("a/b/c", "a/b/d/e", "x/y") },
		change: func(f tree) { f.rename("a/b", "x/b") },
		want:   []string{"C /a", "D /a/b", "C /x", "A /x/b", "A /x/b/c", "A /x/b/d", "A /x/b/d/e"},
	},
	{
		name: "rename of a directory, and changes in it",
		base: func(f tree) { f.files("a/b/c", "a/b/d/e", "a/b/d/f", "x/y") },
		change: func(f tree) {
			f.rename("a/b", "x/b")
			f.file("x/b/d/new", "")
			f.remove("x/b/c")
			f.overwrite("x/b/d/f", 0, "CON")
		},
		want: []string{"C /a", "D /a/b", "C /x", "A /x/b", "A /x/b/d", "A /x/b/d/e", "A /x/b/d/f", "A /x/b/d/new"},
	},
	{
		name:   "rename onto a file",
		base:   func(f tree) { f.file("a", "one"); f.file("b", "three") },
		change: func(f tree) { f.rename("a", "b") },
		want:   []string{"D /a", "C /b"},
	},
	{
		name:   "rename onto a file that seems the same",
		base:   func(f tree) { f.file("a", "one"); f.file("b", "two") },
		change: func(f tree) { f.rename("a", "b") },
		want:   []string{"D /a"},
		hidden: []string{"D /a", "C /b"},
	},
	{
		name: "directory removed and made again",
		base: func(f tree) { f.files("a/b", "a/c", "a/d/e") },
		change: func(f tree) {
			f.remove("a")
			f.files("a/b", "a/d/e", "a/f")
		},
		want: []string{"C /a", "D /a/c", "A /a/f"},
	},
	{
		name:   "directories swapped",
		base:   func(f tree) { f.files("a/same", "b/same", "a/x"); f.file("b/same", "CONTENT"); f.files("b/y/z") },
		change: func(f tree) { f.swap("a", "b") },
		want:   []string{"C /a", "D /a/x", "A /a/y", "A /a/y/z", "C /b", "A /b/x", "D /b/y"},
		hidden: []string{"C /a", "C /a/same", "D /a/x", "A /a/y", "A /a/y/z",
			"C /b", "C /b/same", "A /b/x", "D /b/y"},
	},
	{
		name:   "directory swapped with its subdirectory",
		base:   func(f tree) { f.files("a/b/f", "a/f") },
		change: func(f tree) { f.rename("a/b", "t"); f.rename("a", "t/b"); f.rename("t", "a") },
	},
	{
		name:   "parent becomes child",
		base:   func(f tree) { f.files("a/b/c/f", "a/x") },
		change: func(f tree) { f.rename("a/b/c", "c"); f.rename("a", "c/a") },
		want:   []string{"D /a", "A /c", "A /c/a", "A /c/a/b", "A /c/a/x", "A /c/f"},
	},
	{
		name:   "chain of names shifts",
		base:   func(f tree) { f.file("1", "a"); f.file("2", "bb"); f.file("3", "ccc") },
		change: func(f tree) { f.rename("3", "4"); f.rename("2", "3"); f.rename("1", "2"); f.rename("4", "1") },
		want:   []string{"C /1", "C /2", "C /3"},
	},
	{
		name:   "directory mode only",
		base:   func(f tree) { f.files("a/b/c") },
		change: func(f tree) { f.chmod("a/b", 0o700) },
		want:   []string{"C /a", "C /a/b"},
	},
	{
		name:   "directory times and sizes are no change",
		base:   func(f tree) { f.files("a/b") },
		change: func(f tree) { f.files("a/c"); f.remove("a/c"); f.mtime("a", whole) },
	},
	{
		name:   "mode only",
		base:   func(f tree) { f.files("a", "b", "c", "d") },
		change: func(f tree) { f.chmod("a", 0o600); f.chmod("b", 0o4644); f.chmod("c", 0o1644) },
		want:   []string{"C /a", "C /b", "C /c"},
	},
	{
		name:   "owner only",
		base:   func(f tree) { f.files("a", "b"); f.dir("c"); f.symlink("x", "d") },
		change: func(f tree) { f.chown("a", 1, 0); f.chown("b", 0, 1); f.chown("c", 1, 1); f.chown("d", 1, 1) },
		want:   []string{"C /a", "C /b", "C /c", "C /d"},
	},
	{
		name: "nanoseconds",
		base: func(f tree) {
			f.files("both zero", "one zero", "other zero", "differ", "second", "before 1970")
			f.mtime("other zero", whole.Add(5))
			f.mtime("differ", whole.Add(5))
			f.mtime("before 1970", time.Unix(-10, 5))
		},
		change: func(f tree) {
			f.mtime("one zero", whole.Add(7))
			f.mtime("other zero", whole)
			f.mtime("differ", whole.Add(6))
			f.mtime("second", whole.Add(time.Second))
			f.mtime("before 1970", time.Unix(-10, 0))
		},
		want: []string{"C /differ", "C /second"},
	},
	{
		name:   "size only",
		base:   func(f tree) { f.file("a", "content") },
		change: func(f tree) { f.file("a", "contents") },
		want:   []string{"C /a"},
	},
	{
		name: "same size, same time, other bytes",
		base: func(f tree) {
			f.files("a/edited", "a/same")
			f.file("a/long", strings.Repeat("x", 3*chunkSize+5))
			f.file("a/edge", strings.Repeat("x", 3*chunkSize))
			f.file("a/edge2", strings.Repeat("x", 3*chunkSize))
			f.file("a/rewritten", "content")
		},
		change: func(f tree) {
			f.overwrite("a/edited", 3, "T")
			f.overwrite("a/long", 3*chunkSize+4, "y")
			f.overwrite("a/edge", chunkSize, "y")
			f.overwrite("a/edge2", 2*chunkSize-1, "y")
			f.overwrite("a/rewritten", 0, "content")
		},
		hidden: []string{"C /a", "C /a/edge", "C /a/edge2", "C /a/edited", "C /a/long"},
	},
	{
		name: "sparse files",
		base: func(f tree) {
			for _, path := range []string{"filled", "far", "zeros", "same"} {
				f.file(path, "head")
				require.NoError(f.t, os.Truncate(f.abs(path), 1<<34))
				f.mtime(path, whole)
			}
		},
		change: func(f tree) {
			f.overwrite("filled", 5<<20, "data")
			f.overwrite("far", 1<<34-1, "x")
			f.overwrite("zeros", 1<<33, "\x00\x00\x00")
			f.chmod("same", 0o600)
			f.chmod("same", 0o644)
		},
		hidden: []string{"C /far", "C /filled"},
	},
	{
		name: "hard links",
		base: func(f tree) {
			f.files("a/1", "d/x")
			f.link("a/1", "a/2")
			f.link("a/1", "b")
			f.link("d/x", "d/y")
		},
		change: func(f tree) {
			f.overwrite("a/2", 0, "C")
			f.link("d/x", "new")
			f.remove("d/y")
		},
		want:   []string{"C /d", "D /d/y", "A /new"},
		hidden: []string{"C /a", "C /a/1", "C /a/2", "C /b", "C /d", "D /d/y", "A /new"},
	},
	{
		name: "capabilities",
		base: func(f tree) {
			f.files("added", "removed", "changed", "same", "replaced")
			f.dir("dir")
			f.symlink("x", "symlink")
			f.node("fifo", unix.S_IFIFO|0o644, 0)
			for _, path := range []string{"removed", "changed", "same", "replaced"} {
				f.xattr(path, capabilityXattr, capNetRaw)
			}
		},
		change: func(f tree) {
			for _, path := range []string{"added", "changed", "same", "dir", "symlink", "fifo"} {
				f.xattr(path, capabilityXattr, capChown)
			}
			f.xattr("same", capabilityXattr, capNetRaw)
			require.NoError(f.t, unix.Removexattr(f.abs("removed"), capabilityXattr))
			f.remove("replaced")
			f.files("replaced")
			f.xattr("replaced", capabilityXattr, capNetRaw)
		},
		want: []string{"C /added", "C /changed", "C /dir", "C /fifo", "C /removed", "C /symlink"},
	},
	{
		name: "other attributes are no change",
		base: func(f tree) { f.files("a"); f.dir("b") },
		change: func(f tree) {
			f.xattr("a", "trusted.x", []byte("1"))
			f.xattr("b", "trusted.x", []byte("1"))
		},
	},
	{
		name: "device nodes, fifos and sockets",
		base: func(f tree) {
			f.node("null", unix.S_IFCHR|0o644, unix.Mkdev(1, 3))
			f.node("same", unix.S_IFCHR|0o644, unix.Mkdev(1, 3))
			f.node("type", unix.S_IFCHR|0o644, unix.Mkdev(1, 3))
			f.node("fifo", unix.S_IFIFO|0o644, 0)
			f.node("socket", unix.S_IFSOCK|0o644, 0)
			f.node("gone", unix.S_IFSOCK|0o644, 0)
			f.node("big", unix.S_IFBLK|0o644, unix.Mkdev(4000, 70000))
		},
		change: func(f tree) {
			f.remove("null", "type", "fifo", "socket", "gone", "big")
			f.node("null", unix.S_IFCHR|0o644, unix.Mkdev(1, 5))
			f.node("type", unix.S_IFBLK|0o644, unix.Mkdev(1, 3))
			f.node("fifo", unix.S_IFIFO|0o644, 0)
			f.file("socket", "")
			f.node("new socket", unix.S_IFSOCK|0o644, 0)
			f.node("big", unix.S_IFBLK|0o644, unix.Mkdev(4000, 70001))
		},
		want: []string{"C /big", "D /gone", "A /new socket", "C /null", "C /socket", "C /type"},
	},
	{
		name: "odd names",
		base: func(f tree) {
			f.files("new\nline/x", "\xff\xfe/\x80", strings.Repeat("n", 255)+"/x", ".wh.a", "...", "a\\b")
		},
		change: func(f tree) {
			f.chmod("new\nline/x", 0o600)
			f.remove("\xff\xfe/\x80")
			f.file(strings.Repeat("n", 255)+"/"+strings.Repeat("é", 127), "")
			f.chmod(".wh.a", 0o600)
			f.files(".wh..wh..opq", ".wh.b")
			f.chmod("...", 0o600)
			f.remove("a\\b")
		},
		want: []string{"C /...", "A /.wh..wh..opq", "C /.wh.a", "A /.wh.b", `D /a\b`,
			"C /new\nline", "C /new\nline/x",
			"C /" + strings.Repeat("n", 255), "A /" + strings.Repeat("n", 255) + "/" + strings.Repeat("é", 127),
			"C /\xff\xfe", "D /\xff\xfe/\x80"},
	},
	{
		name: "everything replaced by its copy",
		base: func(f tree) { f.files("a/b/c", "a/d"); f.symlink("x", "a/e") },
		change: func(f tree) {
			copyTree(f.t, f.abs("a"), f.abs("t"))
			f.remove("a")
			f.rename("t", "a")
		},
	},
	{
		name: "added, then all removed",
		base: func(f tree) { f.dir("a") },
		change: func(f tree) {
			f.files("a/b/c", "x/y")
			f.remove("a/b", "x")
		},
	},
}

// TestCorpusWalk holds the walk to the lists in the corpus, and those to go-archive.
func TestCorpusWalk(t *testing.T) {
	testfs.Root(t)
	for _, c := range corpus {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
			require.NoError(t, os.Mkdir(base, 0o755))
			c.base(tree{t, base})
			copyTree(t, base, top)
			c.change(tree{t, top})

			assert.Equal(t, lines(c.want...), text(changesDirs(t, top, base)), "go-archive")
			assert.Equal(t, lines(c.want...), text(mustCompare(t, top, base, nil)))
		})
	}
}

// TestCorpusHints does the same with hints, on clones.
func TestCorpusHints(t *testing.T) {
	testfs.CheckLeaks(t)
	mnt := testfs.Btrfs(t)
	for _, c := range corpus {
		t.Run(c.name, func(t *testing.T) {
			base, top := filepath.Join(mnt, "base"), filepath.Join(mnt, "top")
			subvolume(t, "create", base)
			defer subvolume(t, "delete", base)
			c.base(tree{t, base})
			snapshot(t, base, top)
			defer subvolume(t, "delete", top)
			c.change(tree{t, top})

			want := c.want
			if c.hidden != nil {
				want = c.hidden
			}
			hints := hintsBetween(t, top, base)
			assert.Equal(t, lines(c.want...), text(mustCompare(t, top, base, nil)), "walk")
			assert.Equal(t, lines(want...), text(mustCompare(t, top, base, hints)), "hints")
			hints.Add("", Deep)
			assert.Equal(t, lines(want...), text(mustCompare(t, top, base, hints)), "all compared in full")
		})
	}
}
