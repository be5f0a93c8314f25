package treecopy

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// forest makes random trees and changes them. Each change of a file gives it a time that no other file has.
type forest struct {
	*rand.Rand
	t    testing.TB
	root string
	now  int64

	linkFiles bool // no hard links but of regular files
	plain     bool // no names that look like whiteouts, or are too long to have one
}

func newForest(t testing.TB, seed uint64, root string) *forest {
	return &forest{Rand: rand.New(rand.NewPCG(seed, 0)), t: t, root: root, now: 1_600_000_000}
}

// names are few, so that operations meet. Some sort oddly, and some look like whiteouts.
var names = []string{
	"a", "b", "c", "d", "e", "a-", "a.b", "\xff\xfe", "new\nline", ".wh.a", ".wh..wh..opq", "..a", strings.Repeat("n", 255),
}

func (f *forest) pick(list []string) string { return list[f.IntN(len(list))] }

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

// change applies n random operations.
func (f *forest) change(n int) {
	for range n {
		all, dirs := f.paths()
		dir := f.pick(dirs)
		if len(dir) > len(f.root)+1500 {
			continue
		}
		name := f.pick(names)
		if f.plain {
			name = strings.ReplaceAll(name[:min(len(name), 251)], ".wh.", "-")
		}
		f.step(f.pick(all), dir+"/"+name)
	}
}

var capabilities = [][]byte{
	{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	{1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
}

// acl is u::rwx,u:ID:rwx,g::r-x,m::rwx,o::r-x.
func acl(id byte) []byte {
	return []byte{
		2, 0, 0, 0,
		1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff,
		2, 0, 7, 0, id, 0, 0, 0,
		4, 0, 5, 0, 0xff, 0xff, 0xff, 0xff,
		0x10, 0, 7, 0, 0xff, 0xff, 0xff, 0xff,
		0x20, 0, 5, 0, 0xff, 0xff, 0xff, 0xff,
	}
}

// step does something to an old path, or makes a fresh one. An operation that cannot be done is skipped.
func (f *forest) step(old, fresh string) {
	var st unix.Stat_t
	require.NoError(f.t, unix.Lstat(old, &st))
	kind := st.Mode & unix.S_IFMT
	isRoot, isDir, isFile := old == f.root, kind == unix.S_IFDIR, kind == unix.S_IFREG
	switch f.IntN(18) {
	case 0, 1, 2:
		if os.Mkdir(fresh, 0o755) == nil && f.IntN(3) == 0 {
			require.NoError(f.t, unix.Setxattr(fresh, "system.posix_acl_default", acl(byte(f.IntN(3))), 0))
		}
	case 3, 4, 5, 6:
		if st, err := os.Lstat(fresh); err == nil && !st.Mode().IsRegular() {
			break
		}
		require.NoError(f.t, os.WriteFile(fresh, f.content(), 0o644))
		f.touch(fresh)
	case 7:
		if os.Symlink(f.pick([]string{"a", "b", "../a", "/nowhere", "."}), fresh) == nil {
			f.touch(fresh)
		}
	case 8:
		if !isDir && (isFile || !f.linkFiles) && os.Link(old, fresh) == nil {
			f.touch(fresh)
		}
	case 9:
		mode := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}[f.IntN(4)]
		if unix.Mknod(fresh, mode|0o600, int(unix.Mkdev(1, uint32(3+2*f.IntN(2))))) == nil {
			f.touch(fresh)
		}
	case 10, 11:
		if !isRoot && unix.Rename(old, fresh) == nil {
			f.touch(fresh)
		}
	case 12:
		if !isRoot {
			require.NoError(f.t, os.RemoveAll(old))
		}
	case 13:
		if kind != unix.S_IFLNK {
			mode := []uint32{0o600, 0o644, 0o755, 0o4755, 0o1777, 0o2750}[f.IntN(6)]
			require.NoError(f.t, unix.Chmod(old, mode))
			f.touch(old)
		}
	case 14:
		require.NoError(f.t, os.Lchown(old, f.IntN(3), f.IntN(3)))
		f.touch(old)
	case 15:
		if isFile {
			require.NoError(f.t, unix.Lsetxattr(old, "security.capability", capabilities[f.IntN(2)], 0))
			require.NoError(f.t, unix.Lsetxattr(old, f.pick([]string{"user.x", "trusted.y"}), make([]byte, f.IntN(300)), 0))
			f.touch(old)
		}
	case 16:
		if isFile {
			for _, name := range []string{"security.capability", "user.x", "system.posix_acl_access"} {
				_ = unix.Lremovexattr(old, name)
			}
			f.touch(old)
		}
	case 17:
		if isFile {
			require.NoError(f.t, unix.Lsetxattr(old, "system.posix_acl_access", acl(byte(f.IntN(3))), 0))
			f.touch(old)
		}
	}
}

func (f *forest) content() []byte {
	return bytes.Repeat([]byte{byte(f.IntN(256))}, []int{0, 1, 10, 5000, 70_000}[f.IntN(5)]/(1+f.IntN(3)))
}

// touch gives a file a time of its own. A directory keeps its time: a comparison does not see it.
func (f *forest) touch(path string) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return
	}
	f.now++
	ts := []unix.Timespec{{Sec: f.now, Nsec: 1}, {Sec: f.now, Nsec: f.now % 1000}}
	require.NoError(f.t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// touchLinks touches all files with several names, so that a comparison lists each of these.
func (f *forest) touchLinks() {
	all, _ := f.paths()
	for _, path := range all {
		var st unix.Stat_t
		require.NoError(f.t, unix.Lstat(path, &st))
		if st.Nlink > 1 {
			f.touch(path)
		}
	}
}

// clone copies a tree with all that it has.
func clone(t testing.TB, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}
