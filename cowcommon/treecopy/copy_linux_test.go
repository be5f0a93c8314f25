package treecopy

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// whole compares roots too.
var whole = treecmp.Options{Roots: true}

func compare(t testing.TB, src, dst string) []archive.Change {
	t.Helper()
	changes, err := treediff.Compare(t.Context(), src, dst, nil)
	require.NoError(t, err)
	return changes
}

func mustCopy(t testing.TB, dst, src string) Report {
	t.Helper()
	report, err := Copy(t.Context(), openDir(t, dst), openDir(t, src), compare(t, src, dst), Options{})
	require.NoError(t, err)
	return report
}

// TestCopyMakesTreesEqual copies random changes, and writes the same changes as an overlay, which is merged again.
func TestCopyMakesTreesEqual(t *testing.T) {
	mnt := testfs.Btrfs(t)
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			dir := filepath.Join(mnt, fmt.Sprint(seed))
			base, src, dst, upper, merged := dir+"/base", dir+"/src", dir+"/dst", dir+"/upper", dir+"/merged"
			require.NoError(t, os.MkdirAll(base, 0o755))
			f := forest.New(t, seed, base)
			f.Plain = seed%2 == 0
			f.Change(60)
			clone(t, base, src)
			clone(t, base, dst)
			clone(t, base, merged)
			f.Root = src
			f.Change(1 << (seed % 7))
			f.TouchLinks()

			changes := compare(t, src, base)
			report := mustCopy(t, dst, src)
			listed := treecmp.Options{Roots: true, SkipTime: unlisted(t, src, changes)}
			treecmp.Equal(t, src, dst, listed)
			assert.Zero(t, report.Copied, "all is on one btrfs")
			assert.Empty(t, compare(t, src, dst))

			require.NoError(t, os.Mkdir(upper, 0o700))
			_, err := Overlay(t.Context(), openDir(t, upper), openDir(t, src), changes, Options{})
			require.NoError(t, err)
			_, err = Merge(t.Context(), openDir(t, merged), openDir(t, upper), OverlayMarks, Options{})
			require.NoError(t, err)
			treecmp.Equal(t, src, merged, listed)
			assertOverlayShows(t, src, listed, dir, upper, base)

			if f.Plain {
				for _, form := range []Marks{AufsMarks, FuseOverlayMarks} {
					other := fmt.Sprint(dir, "/other-", form)
					clone(t, base, other)
					makeAufs(t, upper)
					_, err := Merge(t.Context(), openDir(t, other), openDir(t, upper), form, Options{})
					require.NoError(t, err)
					treecmp.Equal(t, src, other, listed)
				}
			}
		})
	}
}

// makeAufs puts files in place of the whiteouts of overlayfs, and keeps the times of directories.
func makeAufs(t *testing.T, root string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		var st, dir unix.Stat_t
		require.NoError(t, unix.Lstat(path, &st))
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			return nil
		}
		require.NoError(t, unix.Stat(filepath.Dir(path), &dir))
		require.NoError(t, os.Remove(path))
		whiteout := filepath.Join(filepath.Dir(path), ".wh."+filepath.Base(path))
		require.NoError(t, os.WriteFile(whiteout, nil, 0o444))
		return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Dir(path), []unix.Timespec{dir.Atim, dir.Mtim}, 0)
	}))
}

// unlisted tells the directories that are in no list of changes. Files came and went in them, and nothing else is
// different.
func unlisted(t *testing.T, root string, changes []archive.Change) func(path string) bool {
	return func(path string) bool {
		info, err := os.Lstat(filepath.Join(root, path))
		require.NoError(t, err)
		return path != "." && info.IsDir() && !slices.ContainsFunc(changes, func(c archive.Change) bool { return c.Path == "/"+path })
	}
}

// assertOverlayShows compares a tree with the overlay of others, topmost first.
func assertOverlayShows(t *testing.T, want string, opts treecmp.Options, dir string, layers ...string) {
	t.Helper()
	mnt := dir + "/mnt"
	require.NoError(t, os.MkdirAll(mnt, 0o700))
	require.NoError(t, unix.Mount("overlay", mnt, "overlay", 0, "lowerdir="+strings.Join(layers, ":")))
	// Numbers of links in an overlay are those of its layers, so the tree is copied first.
	flat := dir + "/flat"
	clone(t, mnt, flat)
	require.NoError(t, unix.Unmount(mnt, 0))
	treecmp.Equal(t, want, flat, opts)
	require.NoError(t, os.RemoveAll(flat))
}

func TestCopyChanges(t *testing.T) {
	write := func(t *testing.T, path, content string) {
		t.Helper()
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	for name, tt := range map[string]struct {
		make    func(t *testing.T, src, dst string)
		changes []archive.Change
		check   func(t *testing.T, dst string)
		err     error
	}{
		"unsorted": {
			make: func(t *testing.T, src, _ string) { write(t, src+"/d/f", "x") },
			changes: []archive.Change{
				{Path: "/d/f", Kind: archive.ChangeAdd}, {Path: "/d", Kind: archive.ChangeAdd},
			},
			check: func(t *testing.T, dst string) { assert.FileExists(t, dst+"/d/f") },
		},
		"the root": {
			make: func(t *testing.T, src, _ string) {
				require.NoError(t, os.Chmod(src, 0o711))
				require.NoError(t, unix.Setxattr(src, "user.r", []byte("1"), 0))
			},
			changes: []archive.Change{{Path: "/", Kind: archive.ChangeModify}},
			check: func(t *testing.T, dst string) {
				info, err := os.Stat(dst)
				require.NoError(t, err)
				assert.Equal(t, os.FileMode(0o711), info.Mode().Perm())
				_, err = unix.Getxattr(dst, "user.r", nil)
				assert.NoError(t, err)
			},
		},
		"delete what is not there": {
			changes: []archive.Change{{Path: "/x", Kind: archive.ChangeDelete}, {Path: "/y/z", Kind: archive.ChangeDelete}},
		},
		"relative":   {changes: []archive.Change{{Path: "a"}}, err: errdefs.ErrInvalidArgument},
		"above":      {changes: []archive.Change{{Path: "/../a"}}, err: errdefs.ErrInvalidArgument},
		"not in src": {changes: []archive.Change{{Path: "/a"}}, err: unix.ENOENT},
		"no parent":  {make: func(t *testing.T, src, _ string) { write(t, src+"/d/f", "") }, changes: []archive.Change{{Path: "/d/f"}}, err: unix.ENOENT},
		"a link in src": {make: func(t *testing.T, src, dst string) {
			require.NoError(t, os.Symlink("/etc", src+"/d"))
			require.NoError(t, os.Mkdir(dst+"/d", 0o755))
		}, changes: []archive.Change{{Path: "/d/passwd"}}, err: unix.ENOTDIR},
		"a link in dst": {
			make: func(t *testing.T, src, dst string) {
				write(t, src+"/d/f", "")
				require.NoError(t, os.Mkdir(dst+".out", 0o755))
				require.NoError(t, os.Symlink(dst+".out", dst+"/d"))
			},
			changes: []archive.Change{{Path: "/d/f"}},
			check:   func(t *testing.T, dst string) { assert.NoFileExists(t, dst+".out/f") },
			err:     unix.ENOTDIR,
		},
		"delete through a link in dst": {
			make: func(t *testing.T, _, dst string) {
				write(t, dst+".out/f", "")
				require.NoError(t, os.Symlink(dst+".out", dst+"/d"))
			},
			changes: []archive.Change{{Path: "/d/f", Kind: archive.ChangeDelete}},
			check:   func(t *testing.T, dst string) { assert.FileExists(t, dst+".out/f") },
			err:     unix.ENOTDIR,
		},
		"a link in dst becomes a directory": {
			make: func(t *testing.T, src, dst string) {
				write(t, src+"/d/f", "")
				require.NoError(t, os.Mkdir(dst+".out", 0o755))
				require.NoError(t, os.Symlink(dst+".out", dst+"/d"))
			},
			changes: []archive.Change{{Path: "/d"}, {Path: "/d/f"}},
			check: func(t *testing.T, dst string) {
				assert.NoFileExists(t, dst+".out/f")
				assert.FileExists(t, dst+"/d/f")
			},
		},
		"a link in dst becomes a file": {
			make: func(t *testing.T, src, dst string) {
				write(t, src+"/f", "new")
				write(t, dst+".out", "old")
				require.NoError(t, os.Symlink(dst+".out", dst+"/f"))
			},
			changes: []archive.Change{{Path: "/f"}},
			check: func(t *testing.T, dst string) {
				content, err := os.ReadFile(dst + ".out")
				require.NoError(t, err)
				assert.Equal(t, "old", string(content))
			},
		},
		"attributes of others": {
			make: func(t *testing.T, src, dst string) {
				write(t, src+"/f", "")
				write(t, dst+"/f", "")
				for _, name := range []string{"trusted.overlay.opaque", "user.overlay.x", "user.fuseoverlayfs.x", "trusted.cowshed.parent", "user.kept"} {
					require.NoError(t, unix.Setxattr(src+"/f", name, []byte("y"), 0))
					require.NoError(t, unix.Setxattr(src, name, []byte("y"), 0))
				}
				require.NoError(t, unix.Setxattr(dst, "trusted.cowshed.parent", []byte("mine"), 0))
			},
			changes: []archive.Change{{Path: "/f"}},
			check: func(t *testing.T, dst string) {
				others := []string{"trusted.overlay.opaque", "user.overlay.x", "user.fuseoverlayfs.x", "user.kept"}
				assert.ElementsMatch(t, others, xattrs(t, dst+"/f"))
				assert.ElementsMatch(t, append(others, "trusted.cowshed.parent"), xattrs(t, dst))
				value := make([]byte, 10)
				n, err := unix.Getxattr(dst, "trusted.cowshed.parent", value)
				require.NoError(t, err)
				assert.Equal(t, "mine", string(value[:n]))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.Root(t)
			dir := memDir(t)
			src, dst := dir+"/src", dir+"/dst"
			require.NoError(t, os.Mkdir(src, 0o755))
			require.NoError(t, os.Mkdir(dst, 0o755))
			if tt.make != nil {
				tt.make(t, src, dst)
			}
			_, err := Copy(t.Context(), openDir(t, dst), openDir(t, src), tt.changes, Options{})
			require.ErrorIs(t, err, tt.err)
			if tt.check != nil {
				tt.check(t, dst)
			}
		})
	}
}

func xattrs(t testing.TB, path string) []string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	require.NoError(t, err)
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
}

// memDir returns a directory of the test in memory.
func memDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "treecopy-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// TestReflink copies files whose data is shared, an attribute C of chattr(1) notwithstanding.
func TestReflink(t *testing.T) {
	mnt := testfs.Btrfs(t)
	const size = 32 << 20
	src, dst := mnt+"/src", mnt+"/dst"
	require.NoError(t, os.Mkdir(src, 0o755))
	require.NoError(t, os.Mkdir(dst, 0o755))
	for _, name := range []string{"cow", "nocow"} {
		f, err := os.Create(src + "/" + name)
		require.NoError(t, err)
		if name == "nocow" {
			require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, noCOW))
		}
		for i := range size >> 20 {
			_, err = f.Write([]byte(strings.Repeat(string(rune('a'+i%26)), 1<<20)))
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
	}
	testfs.Sync(t, mnt)
	report := mustCopy(t, dst, src)
	assert.Equal(t, Report{Files: 2, Reflinked: 2 * size}, report)
	testfs.Sync(t, mnt)
	treecmp.Equal(t, src, dst, whole)
	for _, name := range []string{"cow", "nocow"} {
		assert.True(t, allShared(t, dst+"/"+name), name)
	}
}

// allShared reports whether all extents of a file are shared with others.
func allShared(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	// struct fiemap and struct fiemap_extent of the kernel's include/uapi/linux/fiemap.h.
	type extent struct {
		logical, physical, length uint64
		reserved64                [2]uint64
		flags                     uint32
		reserved                  [3]uint32
	}
	var m struct {
		start, length           uint64
		flags, mapped, count, _ uint32
		extents                 [512]extent
	}
	m.length, m.count = ^uint64(0), uint32(len(m.extents))
	const fiemap, shared = 0xc020660b, 0x2000
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemap, uintptr(unsafe.Pointer(&m)))
	require.Zero(t, errno)
	require.NotZero(t, m.mapped)
	for _, e := range m.extents[:m.mapped] {
		if e.flags&shared == 0 {
			return false
		}
	}
	return true
}

// TestSparse copies sparse files to another filesystem, by the kernel and by hand.
func TestSparse(t *testing.T) {
	mnt := testfs.Btrfs(t)
	src := memDir(t)
	const size = 1 << 30
	for name, at := range map[string][]int64{"none": nil, "begin": {0}, "middle": {size / 2}, "end": {size - 4096}, "several": {4096, 1 << 20, size / 4}} {
		f, err := os.Create(src + "/" + name)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(size))
		for _, at := range at {
			_, err = f.WriteAt([]byte(strings.Repeat("x", 4096)), at)
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
	}
	for _, byHand := range []bool{false, true} {
		dst := fmt.Sprint(mnt, "/dst-", byHand)
		require.NoError(t, os.Mkdir(dst, 0o755))
		c := changeCopier{copier: newCopier(t.Context(), openDir(t, dst), openDir(t, src), Options{}, IsContent)}
		c.noRange = byHand
		report, err := c.done("copy", c.run(compare(t, src, dst)))
		require.NoError(t, err)
		assert.Equal(t, int64(6*4096), report.Copied)
		assert.Zero(t, report.Reflinked)
		testfs.Sync(t, dst)
		entries, err := os.ReadDir(dst)
		require.NoError(t, err)
		for _, e := range entries {
			var a, b unix.Stat_t
			require.NoError(t, unix.Stat(src+"/"+e.Name(), &a))
			require.NoError(t, unix.Stat(dst+"/"+e.Name(), &b))
			assert.Equal(t, int64(size), b.Size)
			assert.Equal(t, a.Blocks, b.Blocks, e.Name())
			assertSameData(t, src+"/"+e.Name(), dst+"/"+e.Name())
		}
	}
}

// assertSameData compares the data of sparse files, without reading their holes.
func assertSameData(t *testing.T, a, b string) {
	t.Helper()
	fa, fb := openDir(t, a), openDir(t, b)
	x, y := make([]byte, 4096), make([]byte, 4096)
	for at := int64(0); ; at += 4096 {
		begin, err := unix.Seek(int(fa.Fd()), at, unix.SEEK_DATA)
		other, otherErr := unix.Seek(int(fb.Fd()), at, unix.SEEK_DATA)
		require.Equal(t, err, otherErr)
		if err != nil {
			return
		}
		require.Equal(t, begin, other)
		at = begin
		_, err = fa.ReadAt(x, at)
		require.NoError(t, err)
		_, err = fb.ReadAt(y, at)
		require.NoError(t, err)
		require.Equal(t, x, y)
	}
}

// makeDeep makes nested directories, with a file in each, deeper than a path can say.
func makeDeep(t *testing.T, root, name string, depth int) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for range depth {
		require.NoError(t, unix.Mkdirat(fd, name, 0o750))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		file, err := unix.Openat(next, "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		require.NoError(t, err)
		require.NoError(t, unix.Close(file))
		require.NoError(t, unix.Close(fd))
		fd = next
	}
	require.NoError(t, unix.Close(fd))
}

func TestDeep(t *testing.T) {
	testfs.Root(t)
	dir := memDir(t)
	src, copied, merged := dir+"/src", dir+"/copied", dir+"/merged"
	for _, tree := range []string{src, copied, merged} {
		require.NoError(t, os.Mkdir(tree, 0o755))
	}
	makeDeep(t, src, "d", 1500)
	makeDeep(t, src, strings.Repeat("n", 255), 300)
	report := mustCopy(t, copied, src)
	assert.Equal(t, int64(2*1800), report.Files)
	report, err := Merge(t.Context(), openDir(t, merged), openDir(t, src), OverlayMarks, Options{})
	require.NoError(t, err)
	assert.Equal(t, int64(2*1800), report.Files)
	assert.Empty(t, compare(t, copied, src))
	assert.Empty(t, compare(t, merged, src))
}

// endingContext ends when it has been asked n times.
type endingContext struct {
	context.Context
	asked, most int
}

func (c *endingContext) Err() error {
	if c.asked++; c.asked > c.most {
		return context.Canceled
	}
	return nil
}

func TestCancelled(t *testing.T) {
	testfs.Root(t)
	dir := memDir(t)
	src := dir + "/src"
	require.NoError(t, os.Mkdir(src, 0o755))
	forest.New(t, 1, src).Change(60)
	require.NoError(t, os.WriteFile(src+"/large", make([]byte, 3*chunk), 0o600))
	for name, run := range map[string]func(ctx context.Context, dst *os.File) error{
		"copy": func(ctx context.Context, dst *os.File) error {
			_, err := Copy(ctx, dst, openDir(t, src), compare(t, src, dst.Name()), Options{})
			return err
		},
		"overlay": func(ctx context.Context, dst *os.File) error {
			_, err := Overlay(ctx, dst, openDir(t, src), compare(t, src, dst.Name()), Options{})
			return err
		},
		"merge": func(ctx context.Context, dst *os.File) error {
			_, err := Merge(ctx, dst, openDir(t, src), OverlayMarks, Options{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for most := 0; ; most++ {
				dst := fmt.Sprintf("%s/%s-%d", dir, name, most)
				require.NoError(t, os.Mkdir(dst, 0o755))
				err := run(&endingContext{Context: t.Context(), most: most}, openDir(t, dst))
				if err == nil {
					assert.Greater(t, most, 10)
					return
				}
				require.ErrorIs(t, err, context.Canceled)
				require.NoError(t, os.RemoveAll(dst))
			}
		})
	}
}
