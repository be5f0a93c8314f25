package forest

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Forest makes random trees and changes them. Each change of a file gives it a time that no other file has.
type Forest struct {
	*rand.Rand
	t    testing.TB
	Root string // of the tree that is changed
	now  int64  // the time that was given last

	LinkFiles bool // no hard links but of regular files
	Plain     bool // no names that look like whiteouts, or are too long to have one
}

// New returns a forest that changes the tree at root.
func New(t testing.TB, seed uint64, root string) *Forest {
	return &Forest{Rand: rand.New(rand.NewPCG(seed, 0)), t: t, Root: root, now: 1_600_000_000}
}

// Names are few, so that operations meet. Some sort oddly, and some look like whiteouts.
var Names = []string{
	"a", "b", "c", "d", "e", "a-", "a.b", "\xff\xfe", "new\nline", ".wh.a", ".wh..wh..opq", "..a", strings.Repeat("n", 255),
}

// Pick returns one of a list.
func (f *Forest) Pick(list []string) string { return list[f.IntN(len(list))] }

// Paths lists all paths, and those of directories.
func (f *Forest) Paths() (all, dirs []string) {
	require.NoError(f.t, filepath.WalkDir(f.Root, func(path string, e fs.DirEntry, err error) error {
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

// Change applies n random operations.
func (f *Forest) Change(n int) {
	for range n {
		all, dirs := f.Paths()
		dir := f.Pick(dirs)
		if len(dir) > len(f.Root)+1500 {
			continue
		}
		name := f.Pick(Names)
		if f.Plain {
			name = strings.ReplaceAll(name[:min(len(name), 251)], ".wh.", "-")
		}
		f.step(f.Pick(all), dir+"/"+name)
	}
}

var capabilities = [][]byte{
	{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	{1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
}

// ACL is u::rwx,u:ID:rwx,g::r-x,m::rwx,o::r-x.
func ACL(id byte) []byte {
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
func (f *Forest) step(old, fresh string) {
	var st unix.Stat_t
	require.NoError(f.t, unix.Lstat(old, &st))
	kind := st.Mode & unix.S_IFMT
	isRoot, isDir, isFile := old == f.Root, kind == unix.S_IFDIR, kind == unix.S_IFREG
	switch f.IntN(18) {
	case 0, 1, 2:
		if os.Mkdir(fresh, 0o755) == nil && f.IntN(3) == 0 {
			require.NoError(f.t, unix.Setxattr(fresh, "system.posix_acl_default", ACL(byte(f.IntN(3))), 0))
		}
	case 3, 4, 5, 6:
		if st, err := os.Lstat(fresh); err == nil && !st.Mode().IsRegular() {
			break
		}
		require.NoError(f.t, os.WriteFile(fresh, f.Content(), 0o644))
		f.Touch(fresh)
	case 7:
		if os.Symlink(f.Pick([]string{"a", "b", "../a", "/nowhere", "."}), fresh) == nil {
			f.Touch(fresh)
		}
	case 8:
		if !isDir && (isFile || !f.LinkFiles) && os.Link(old, fresh) == nil {
			f.Touch(fresh)
		}
	case 9:
		mode := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}[f.IntN(4)]
		if unix.Mknod(fresh, mode|0o600, int(unix.Mkdev(1, uint32(3+2*f.IntN(2))))) == nil {
			f.Touch(fresh)
		}
	case 10, 11:
		if !isRoot && unix.Rename(old, fresh) == nil {
			f.Touch(fresh)
		}
	case 12:
		if !isRoot {
			require.NoError(f.t, os.RemoveAll(old))
		}
	case 13:
		if kind != unix.S_IFLNK {
			mode := []uint32{0o600, 0o644, 0o755, 0o4755, 0o1777, 0o2750}[f.IntN(6)]
			require.NoError(f.t, unix.Chmod(old, mode))
			f.Touch(old)
		}
	case 14:
		require.NoError(f.t, os.Lchown(old, f.IntN(3), f.IntN(3)))
		f.Touch(old)
	case 15:
		if isFile {
			require.NoError(f.t, unix.Lsetxattr(old, "security.capability", capabilities[f.IntN(2)], 0))
			require.NoError(f.t, unix.Lsetxattr(old, f.Pick([]string{"user.x", "trusted.y"}), make([]byte, f.IntN(300)), 0))
			f.Touch(old)
		}
	case 16:
		if isFile {
			for _, name := range []string{"security.capability", "user.x", "system.posix_acl_access"} {
				_ = unix.Lremovexattr(old, name)
			}
			f.Touch(old)
		}
	case 17:
		if isFile {
			require.NoError(f.t, unix.Lsetxattr(old, "system.posix_acl_access", ACL(byte(f.IntN(3))), 0))
			f.Touch(old)
		}
	}
}

// Content returns the content for a file.
func (f *Forest) Content() []byte {
	return bytes.Repeat([]byte{byte(f.IntN(256))}, []int{0, 1, 10, 5000, 70_000}[f.IntN(5)]/(1+f.IntN(3)))
}

// Touch gives a file a time of its own. A directory keeps its time: a comparison does not see it.
func (f *Forest) Touch(path string) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return
	}
	f.now++
	ts := []unix.Timespec{{Sec: f.now, Nsec: 1}, {Sec: f.now, Nsec: f.now % 1000}}
	require.NoError(f.t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// TouchLinks touches all files with several names, so that a comparison lists each of these.
func (f *Forest) TouchLinks() {
	all, _ := f.Paths()
	for _, path := range all {
		var st unix.Stat_t
		require.NoError(f.t, unix.Lstat(path, &st))
		if st.Nlink > 1 {
			f.Touch(path)
		}
	}
}
