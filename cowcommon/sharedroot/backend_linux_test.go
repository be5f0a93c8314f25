package sharedroot_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
	"github.com/cowshed/cowshed/zfs"
)

// store is a home with a Backend for shared roots.
type store struct {
	cowcommon.Backend
	t     *testing.T
	inner cowcommon.Backend
	home  string
	start func() (cowcommon.Backend, error)
	// longestRead is the option of that name. 0: the tests' patience
	longestRead time.Duration
	// keepsOrigins: a volume cannot be removed before its clones.
	keepsOrigins bool
}

// newStore makes a store on btrfs.
func newStore(t *testing.T) *store {
	t.Helper()
	testfs.CheckLeaks(t)
	home := filepath.Join(testfs.Btrfs(t, testfs.WithSimpleQuota()), "home")
	return openStore(t, home, func() (cowcommon.Backend, error) { return btrfs.Open(t.Context(), home, btrfs.Options{}) })
}

// newStoreOnZFS makes a store on ZFS. Its home is on another filesystem, as it often is.
func newStoreOnZFS(t *testing.T) *store {
	t.Helper()
	testfs.CheckLeaks(t)
	dataset, _ := testfs.ZFS(t)
	home := t.TempDir()
	s := openStore(t, home, func() (cowcommon.Backend, error) { return zfs.Open(t.Context(), home, dataset, zfs.Options{}) })
	s.keepsOrigins = true
	return s
}

func openStore(t *testing.T, home string, start func() (cowcommon.Backend, error)) *store {
	t.Helper()
	s := &store{t: t, home: home, start: start}
	s.open()
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

func (s *store) open() {
	s.t.Helper()
	var err error
	s.inner, err = s.start()
	require.NoError(s.t, err)
	s.Backend, err = sharedroot.New(s.t.Context(), s.inner, s.home, sharedroot.Options{LongestRead: cmp.Or(s.longestRead, testfs.Patience)})
	require.NoError(s.t, err)
}

// inside calls do with the volume's own tree.
func (s *store) inside(name string, do func(dir string)) {
	s.t.Helper()
	dir, err := s.inner.Mount(s.t.Context(), name, "")
	require.NoError(s.t, err)
	do(dir)
	require.NoError(s.t, s.inner.Unmount(s.t.Context(), name))
}

// backendTests are tests for any Backend inside.
var backendTests = map[string]func(t *testing.T, s *store){
	"SharedRoot":       testSharedRoot,
	"SealFolds":        testSealFolds,
	"CloneOfShared":    testCloneOfShared,
	"CloneSealsShared": testCloneSealsShared,
	"CloneOfWritable":  testCloneOfWritable,
	"ViewOfRunning":    testViewOfRunning,
	"Restart":          testRestart,
	"BusyUnmount":      testBusyUnmount,
	"Limit":            testLimit,
	"FullLimit":        testFullLimit,
	"SetRootStyle":     testSetRootStyle,
	"Keep":             testKeep,
	"TwoBackends":      testTwoBackends,
	"FailedClone":      testFailedClone,
	"Identities":       testIdentities,
	"Fork":             testFork,
	"ForkNot":          testForkNot,
	"RestoreNotes":     testRestoreNotes,
	"WithoutWork":      testWithoutWork,
	"NotesOfRemoved":   testNotesOfRemoved,
	"Receive":          testReceive,
}

func TestOnBtrfs(t *testing.T) {
	for name, test := range backendTests {
		t.Run(name, func(t *testing.T) { test(t, newStore(t)) })
	}
}

func TestOnZFS(t *testing.T) {
	for name, test := range backendTests {
		t.Run(name, func(t *testing.T) { test(t, newStoreOnZFS(t)) })
	}
}

// crash forgets the Backend without its Close, as the end of a process does: the locks and descriptors go, and mounts
// stay.
func (s *store) crash() {
	s.t.Helper()
	require.NoError(s.t, s.inner.Close())
	sharedroot.Abandon(s.Backend)
}

// image makes a sealed volume with some content.
func (s *store) image(name string) {
	s.t.Helper()
	require.NoError(s.t, s.Create(s.t.Context(), name, cowcommon.VolumeOptions{}))
	s.edit(name, func(dir string) {
		require.NoError(s.t, os.MkdirAll(dir+"/etc/deep", 0o755))
		require.NoError(s.t, os.WriteFile(dir+"/etc/conf", []byte("of the image"), 0o644))
		require.NoError(s.t, os.WriteFile(dir+"/etc/deep/same", []byte("same"), 0o644))
		require.NoError(s.t, os.WriteFile(dir+"/gone", []byte("gone"), 0o644))
		require.NoError(s.t, os.WriteFile(dir+"/big", make([]byte, 1<<20), 0o644))
	})
	require.NoError(s.t, cowcommon.Seal(s.t.Context(), s.Backend, name))
}

// container makes a shared clone.
func (s *store) container(name, image string) {
	s.t.Helper()
	require.NoError(s.t, s.Clone(s.t.Context(), name, image, cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}))
	s.hasStyle(name, cowcommon.SharedRoot)
}

func (s *store) hasStyle(name string, style cowcommon.RootStyle) {
	s.t.Helper()
	v, err := s.Stat(s.t.Context(), name)
	require.NoError(s.t, err)
	require.Equal(s.t, style, v.RootStyle, "of volume %s", name)
}

func (s *store) mount(name string) string {
	s.t.Helper()
	dir, err := s.Mount(s.t.Context(), name, "")
	require.NoError(s.t, err)
	return dir
}

func (s *store) unmount(name string) {
	s.t.Helper()
	require.NoError(s.t, s.Unmount(s.t.Context(), name))
}

func (s *store) edit(name string, do func(dir string)) {
	s.t.Helper()
	do(s.mount(name))
	s.unmount(name)
}

// typical makes changes of each kind.
func (s *store) typical(dir string) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(dir+"/etc/conf", []byte("of the container"), 0o600))
	require.NoError(s.t, os.Remove(dir+"/gone"))
	require.NoError(s.t, os.MkdirAll(dir+"/new/dir", 0o750))
	require.NoError(s.t, os.WriteFile(dir+"/new/dir/file", []byte("new"), 0o644))
}

var typicalChanges = []string{"C /etc", "C /etc/conf", "D /gone", "A /new", "A /new/dir", "A /new/dir/file"}

// links are compared as far as an overlay keeps them.
var links = treecmp.Options{LinksInTree: true}

// changes compares two volumes, natively unless how says another.
func (s *store) changes(name, parent string, native bool) (list []string) {
	s.t.Helper()
	way := cowcommon.Auto
	if !native {
		way = cowcommon.Walk
	}
	comparer := cowcommon.NewComparer(s.Backend, user.IdentityMapping{}, slog.New(slog.DiscardHandler))
	c, err := comparer.Compare(s.t.Context(), name, parent, way)
	require.NoError(s.t, err)
	assert.Equal(s.t, native, c.Native, c.Reason)
	for _, change := range c.Changes {
		list = append(list, change.String())
	}
	require.NoError(s.t, c.Close())
	return list
}

func overlaysBelow(t *testing.T, dir string) (points []string) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	for _, m := range mounts {
		if m.FSType == "overlay" {
			points = append(points, filepath.Base(m.Mountpoint))
		}
	}
	return points
}

func testSharedRoot(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")

	dir := s.mount("c")
	assert.Equal(t, dir, s.mount("c"), "mounts are counted")
	s.typical(dir)
	s.unmount("c")
	assert.Equal(t, []string{"c"}, overlaysBelow(t, s.home))
	assert.Equal(t, typicalChanges, s.changes("c", "image", true), "while it is mounted")
	s.unmount("c")
	s.unmount("c")
	assert.Empty(t, overlaysBelow(t, s.home))
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))
	assert.Equal(t, typicalChanges, s.changes("c", "image", false))
	assert.Empty(t, overlaysBelow(t, s.home), "views are closed")

	err := s.Remove(ctx, "image")
	require.ErrorIs(t, err, fault.ErrInUse)
	assert.ErrorContains(t, err, "(c)")
	require.ErrorIs(t, cowcommon.Rename(ctx, s.Backend, "image", "i"), fault.ErrInUse)

	require.NoError(t, cowcommon.Rename(ctx, s.Backend, "c", "d"))
	s.hasStyle("d", cowcommon.SharedRoot)
	require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse)
	require.NoError(t, s.Remove(ctx, "d"))
	require.NoError(t, s.Remove(ctx, "image"))
}

// A clone of style snapshot is as it was before there were shared roots.
func TestSnapshotRoot(t *testing.T) {
	s := newStore(t)
	s.image("image")
	require.NoError(t, s.Clone(t.Context(), "c", "image", cowcommon.VolumeOptions{}))
	s.hasStyle("c", cowcommon.SnapshotRoot)
	s.edit("c", func(dir string) {
		assert.Equal(t, s.home+"/subvolumes/c", dir)
		s.typical(dir)
	})
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))
	require.NoError(t, s.Remove(t.Context(), "image"), "nothing shares it")
	assert.NoDirExists(t, s.home+"/roots")
}

// All containers of an image read the same pages.
func TestPagesAreShared(t *testing.T) {
	s := newStore(t)
	s.image("image")
	image := s.mount("image")
	var dirs []string
	for _, name := range []string{"a", "b"} {
		s.container(name, "image")
		dirs = append(dirs, s.mount(name))
	}
	drop(t, image+"/big")
	require.Zero(t, cachedPages(t, dirs[1]+"/big"))
	_, err := os.ReadFile(dirs[0] + "/big")
	require.NoError(t, err)
	assert.Equal(t, (1<<20)/os.Getpagesize(), cachedPages(t, dirs[1]+"/big"), "pages of a, seen through b")
	assert.Equal(t, backing(t, image+"/big"), backing(t, dirs[0]+"/big"))

	for _, name := range []string{"a", "b", "image"} {
		s.unmount(name)
	}
}

// No two files with one link have the same device and inode number.
func testIdentities(t *testing.T, s *store) {
	s.image("image")
	s.container("c", "image")
	dir := s.mount("c")
	for i := range 50 { // new inodes, and copied ones
		require.NoError(t, os.WriteFile(fmt.Sprintf("%s/etc/new-%d", dir, i), nil, 0o644))
	}
	require.NoError(t, os.Chmod(dir+"/etc/conf", 0o600))
	seen := map[[2]uint64]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if st.Nlink == 1 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			id := [2]uint64{st.Dev, st.Ino}
			assert.Empty(t, seen[id], path)
			seen[id] = path
		}
		return err
	}))
	s.unmount("c")
}

// backing is the extent of the first byte of a file.
func backing(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	maps, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { assert.NoError(t, unix.Munmap(maps)) }()
	text, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 5 && strings.HasSuffix(fields[5], "/big") {
			return fields[4] // the inode
		}
	}
	t.Fatal("no mapping of " + path)
	return ""
}

// drop takes a file out of the page cache. The kernel keeps pages that something else works with at that moment.
func drop(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	for begun, cached := time.Now(), true; cached && time.Since(begun) < testfs.Patience; {
		require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		cached = cachedPages(t, path) > 0
	}
}

// cachedPages counts the pages of a file that are in memory.
func cachedPages(t *testing.T, path string) (n int) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { assert.NoError(t, unix.Munmap(data)) }()
	resident := make([]byte, (len(data)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), uintptr(unsafe.Pointer(&resident[0])))
	require.Zero(t, errno)
	for _, r := range resident {
		n += int(r & 1)
	}
	return n
}

func testSealFolds(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	dir := s.mount("c")
	s.typical(dir)
	require.ErrorIs(t, cowcommon.Seal(ctx, s.Backend, "c"), fault.ErrInUse)
	s.hasStyle("c", cowcommon.SharedRoot)
	want, err := treecmp.Read(dir, links)
	require.NoError(t, err)
	s.unmount("c")
	require.NoError(t, cowcommon.Seal(ctx, s.Backend, "c"))
	s.hasStyle("c", cowcommon.SnapshotRoot)
	sealed := s.mount("c")
	assert.NotEqual(t, dir, sealed)
	got, err := treecmp.Read(sealed, links)
	require.NoError(t, err)
	assert.Empty(t, want.Diff(got, links))
	s.unmount("c")
	assert.Equal(t, typicalChanges, s.changes("c", "image", true), "by the filesystem's own hints")
	if !s.keepsOrigins {
		require.NoError(t, s.Remove(ctx, "image"))
	}
}

// A clone of a shared volume is shared over the same lower, or, on demand, it is folded.
func testCloneOfShared(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	s.typical(s.mount("c"))
	for name, style := range map[string]cowcommon.RootStyle{"fork": cowcommon.SharedRoot, "plain": cowcommon.SnapshotRoot} {
		require.NoError(t, s.Clone(ctx, name, "c", cowcommon.VolumeOptions{RootStyle: style}))
		s.hasStyle(name, style)
		assert.Equal(t, typicalChanges, s.changes(name, "image", style == cowcommon.SharedRoot || name == "plain"))
	}
	require.ErrorIs(t, s.Clone(ctx, "fork", "c", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}), errdefs.ErrAlreadyExists)
	s.hasStyle("c", cowcommon.SharedRoot)
	s.unmount("c")
	require.NoError(t, s.Clone(ctx, "child", "c", cowcommon.VolumeOptions{}))
	s.hasStyle("c", cowcommon.SnapshotRoot)
	if !s.keepsOrigins {
		require.NoError(t, s.Remove(ctx, "c"))
	}
	require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse, "the fork shares it")
}

// A shared clone seals a volume that nobody uses with its shared root. Such is an engine's layer between an image and a
// container. Both share the image.
func testCloneSealsShared(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("init", "image")
	s.edit("init", func(dir string) {
		s.typical(dir)
		require.NoError(t, os.WriteFile(dir+"/etc/hosts", nil, 0o644))
		require.NoError(t, os.WriteFile(dir+"/new/same", []byte("same"), 0o644))
		require.NoError(t, os.Mkdir(dir+"/new/replaced", 0o755))
		require.NoError(t, os.WriteFile(dir+"/new/replaced/by", []byte("another"), 0o644))
	})
	s.container("c", "init")
	s.isSealed("init", cowcommon.SharedRoot)
	assert.Empty(t, s.changes("c", "init", true), "the changes of init are not those of c")
	require.NoError(t, cowcommon.Seal(ctx, s.Backend, "init"), "it is already")
	require.ErrorIs(t, cowcommon.SetRootStyle(ctx, s.Backend, "init", cowcommon.SnapshotRoot), fault.ErrSealed)
	require.ErrorIs(t, cowcommon.Receive(ctx, s.Backend, "d", "init", strings.NewReader("")), fault.ErrSealed)
	s.isSealed("init", cowcommon.SharedRoot)
	s.edit("init", func(dir string) { require.ErrorIs(t, os.WriteFile(dir+"/x", nil, 0o600), unix.EROFS) })

	s.edit("c", func(dir string) {
		info, err := os.Stat(dir + "/new/same")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(dir+"/new/same", []byte("else"), 0o644))
		require.NoError(t, os.Chtimes(dir+"/new/same", info.ModTime(), info.ModTime()))
		require.NoError(t, os.Remove(dir+"/etc/hosts"))
		require.NoError(t, os.WriteFile(dir+"/etc/deep/same", []byte("same"), 0o600))
		require.NoError(t, os.WriteFile(dir+"/gone", []byte("back"), 0o644))
		require.NoError(t, os.RemoveAll(dir+"/new/replaced"))
		require.NoError(t, os.Mkdir(dir+"/new/replaced", 0o755))
	})
	want := []string{"C /etc", "C /etc/deep", "C /etc/deep/same", "D /etc/hosts", "A /gone", "C /new", "C /new/replaced", "D /new/replaced/by", "C /new/same"}
	assert.Equal(t, want, s.changes("c", "init", true))

	require.NoError(t, s.Clone(ctx, "plain", "init", cowcommon.VolumeOptions{}))
	s.hasStyle("plain", cowcommon.SnapshotRoot)
	assert.Empty(t, s.changes("plain", "init", false))
	require.NoError(t, s.Close())
	s.open()
	s.isSealed("init", cowcommon.SharedRoot)
	assert.Equal(t, want, s.changes("c", "init", true))

	err := s.Remove(ctx, "image")
	require.ErrorIs(t, err, fault.ErrInUse)
	assert.ErrorContains(t, err, "2 volumes")
	require.NoError(t, cowcommon.Rename(ctx, s.Backend, "init", "renamed"))
	s.isSealed("renamed", cowcommon.SharedRoot)
	assert.Equal(t, want, s.changes("c", "renamed", true))
	if s.keepsOrigins {
		return
	}
	require.NoError(t, s.Remove(ctx, "renamed"))
	require.ErrorIs(t, s.Remove(ctx, "image"), fault.ErrInUse)
	s.edit("c", func(dir string) { assert.FileExists(t, dir+"/new/dir/file") })
	require.NoError(t, cowcommon.Seal(ctx, s.Backend, "c"))
	s.isSealed("c", cowcommon.SnapshotRoot)
	s.edit("c", func(dir string) { assert.FileExists(t, dir+"/new/dir/file") })
	require.NoError(t, s.Remove(ctx, "image"))
}

// TestRandomClones does random operations in a volume and in its shared clone. The Backend's hints give the changes that a
// walk finds, and files of which the bytes alone are others.
func TestRandomClones(t *testing.T) {
	s := newStore(t)
	require.NoError(t, s.Create(t.Context(), "image", cowcommon.VolumeOptions{}))
	s.edit("image", func(dir string) { forest.New(t, 0, dir).Change(80) })
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "image"))
	for seed := range uint64(20) {
		init, c := fmt.Sprint("init-", seed), fmt.Sprint("c-", seed)
		s.container(init, "image")
		s.edit(init, func(dir string) { changeAndReplace(t, forest.New(t, seed, dir), 1+int(seed)) })
		s.container(c, init)
		s.edit(c, func(dir string) { changeAndReplace(t, forest.New(t, seed+100, dir), 1+int(seed)) })
		native, walked := s.changes(c, init, true), s.changes(c, init, false)
		for _, change := range native {
			if slices.Contains(walked, change) {
				continue
			}
			kind, path, _ := strings.Cut(change, " ")
			assert.Equal(t, "C", kind, "seed %d: %s", seed, change)
			assert.NotEqual(t, s.read(init, path), s.read(c, path), "seed %d: %s", seed, change)
		}
		for _, change := range walked {
			assert.Contains(t, native, change, "seed %d", seed)
		}
	}
}

// changeAndReplace does n random operations. A third of them replace a directory, or a name that is gone, by another directory.
// Where the lower has a directory, that one becomes opaque.
func changeAndReplace(t *testing.T, f *forest.Forest, n int) {
	t.Helper()
	for range n {
		if f.IntN(3) > 0 {
			f.Change(1)
			continue
		}
		_, dirs := f.Paths()
		old, other := f.Pick(dirs), f.Pick(dirs)
		if old == f.Root {
			continue
		}
		require.NoError(t, os.RemoveAll(old))
		if other == f.Root || os.Rename(other, old) != nil { // EXDEV for a directory of the lower
			_ = os.MkdirAll(old, 0o755)
			_ = os.WriteFile(filepath.Join(old, f.Pick(forest.Names)), f.Content(), 0o600)
		}
	}
}

// A directory that hides another of the image is compared in full: only one of the uppers has it, and no upper has a name for
// the hidden files.
func TestReplacedInClone(t *testing.T) {
	s := newStore(t)
	require.NoError(t, s.Create(t.Context(), "image", cowcommon.VolumeOptions{}))
	s.edit("image", func(dir string) {
		for _, name := range []string{"made", "moved", "back", "deep/made"} {
			require.NoError(t, os.MkdirAll(dir+"/"+name, 0o755))
			require.NoError(t, os.WriteFile(dir+"/"+name+"/old", []byte("old"), 0o644))
		}
	})
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "image"))
	s.container("init", "image")
	s.edit("init", func(dir string) {
		require.NoError(t, os.MkdirAll(dir+"/fresh", 0o755))
		require.NoError(t, os.RemoveAll(dir+"/back"))
		require.NoError(t, os.Mkdir(dir+"/back", 0o755))
	})
	s.container("c", "init")
	s.edit("c", func(dir string) {
		for _, name := range []string{"made", "moved", "deep/made"} {
			require.NoError(t, os.RemoveAll(dir+"/"+name))
		}
		require.NoError(t, os.Mkdir(dir+"/made", 0o755))
		require.NoError(t, os.Mkdir(dir+"/deep/made", 0o755))
		require.NoError(t, os.Rename(dir+"/fresh", dir+"/moved"))
	})
	want := s.changes("c", "init", false)
	for _, name := range []string{"made", "moved", "deep/made"} {
		assert.Contains(t, want, "D /"+name+"/old")
	}
	assert.Equal(t, want, s.changes("c", "init", true))
}

// TestRandomUnfold does random operations in volumes of style snapshot. Shared, and folded again, they have the same trees.
func TestRandomUnfold(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	require.NoError(t, s.Create(ctx, "image", cowcommon.VolumeOptions{}))
	s.edit("image", func(dir string) { forest.New(t, 0, dir).Change(80) })
	require.NoError(t, cowcommon.Seal(ctx, s.Backend, "image"))
	read := func(name string) (tree treecmp.Tree) {
		s.edit(name, func(dir string) {
			var err error
			tree, err = treecmp.Read(dir, treecmp.Options{LinksInTree: true, Roots: true})
			require.NoError(t, err)
		})
		return tree
	}
	shared := 0
	for seed := range uint64(30) {
		name := fmt.Sprint("c-", seed)
		require.NoError(t, s.Clone(ctx, name, "image", cowcommon.VolumeOptions{}))
		s.edit(name, func(dir string) { forest.New(t, seed+1, dir).Change(1 + int(seed)) })
		want, changes := read(name), s.changes(name, "image", true)
		for _, style := range []cowcommon.RootStyle{cowcommon.SharedRoot, cowcommon.SnapshotRoot} {
			err := cowcommon.SetRootStyle(ctx, s.Backend, name, style)
			if errdefs.IsFailedPrecondition(err) {
				t.Log(seed, err)
				s.hasStyle(name, cowcommon.SnapshotRoot)
				continue
			}
			require.NoError(t, err)
			s.hasStyle(name, style)
			if style == cowcommon.SharedRoot {
				shared++
			}
			assert.Empty(t, want.Diff(read(name), treecmp.Options{LinksInTree: true, Roots: true}), "seed %d: %s", seed, style)
			assert.Equal(t, changes, s.changes(name, "image", true), "seed %d: %s", seed, style)
		}
	}
	assert.Greater(t, shared, 15)
}

// read reads a file of a volume.
func (s *store) read(name, path string) (content string) {
	s.t.Helper()
	s.edit(name, func(dir string) {
		data, err := os.ReadFile(dir + path)
		require.NoError(s.t, err)
		content = string(data)
	})
	return content
}

func (s *store) isSealed(name string, style cowcommon.RootStyle) {
	s.t.Helper()
	s.hasStyle(name, style)
	v, err := s.Stat(s.t.Context(), name)
	require.NoError(s.t, err)
	require.True(s.t, v.Sealed, "volume %s", name)
}

// A clone of a volume that is written to cannot share it. It is made when the volume is used no longer.
func testCloneOfWritable(t *testing.T, s *store) {
	require.NoError(t, s.Create(t.Context(), "c", cowcommon.VolumeOptions{}))
	s.mount("c")
	shared := cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot}
	require.ErrorIs(t, s.Clone(t.Context(), "d", "c", shared), fault.ErrInUse)
	_, err := s.Stat(t.Context(), "d")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = os.Readlink(s.note("d"))
	require.ErrorIs(t, err, os.ErrNotExist)
	s.unmount("c")
	require.NoError(t, s.Clone(t.Context(), "d", "c", shared))
	s.hasStyle("d", cowcommon.SharedRoot)
}

// A view shows one moment, whatever is written meanwhile.
func testViewOfRunning(t *testing.T, s *store) {
	s.image("image")
	s.container("c", "image")
	dir := s.mount("c")
	s.typical(dir)
	v, err := s.View(t.Context(), "c")
	require.NoError(t, err)
	before, err := treecmp.Read(v.Dir(), links)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/etc/conf", []byte("later"), 0o600))
	require.NoError(t, os.RemoveAll(dir+"/new"))
	require.NoError(t, os.WriteFile(dir+"/big", []byte("short"), 0o600))
	after, err := treecmp.Read(v.Dir(), links)
	require.NoError(t, err)
	assert.Empty(t, before.Diff(after, links))
	content, err := os.ReadFile(v.Dir() + "/etc/conf")
	require.NoError(t, err)
	assert.Equal(t, "of the container", string(content))
	require.ErrorIs(t, os.WriteFile(v.Dir()+"/etc/conf", nil, 0o600), unix.EROFS)

	other, err := s.View(t.Context(), "image")
	require.NoError(t, err)
	require.ErrorIs(t, cowcommon.Send(t.Context(), s.Backend, io.Discard, other, v), errdefs.ErrNotImplemented)
	_, err = cowcommon.Hints(t.Context(), s.Backend, v, other)
	require.ErrorIs(t, err, treediff.ErrNoHints)
	require.NoError(t, other.Close())
	require.NoError(t, v.Close())
	require.NoError(t, v.Close())
	s.unmount("c")
}

// TestHintsWithoutDescriptors: a view of a shared root whose upper cannot be opened is walked, as are others without hints.
func TestHintsWithoutDescriptors(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	base, err := s.View(t.Context(), "image")
	require.NoError(t, err)
	top, err := s.View(t.Context(), "c")
	require.NoError(t, err)
	_, err = cowcommon.Hints(t.Context(), s.Backend, base, top)
	require.NoError(t, err)

	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	_, err = cowcommon.Hints(t.Context(), s.Backend, base, top)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.ErrorIs(t, err, unix.EMFILE)
	var why *treediff.NoHintsError
	require.ErrorAs(t, err, &why)
	assert.Equal(t, "upper", why.Reason)
	require.NoError(t, errors.Join(top.Close(), base.Close()))
}

// Others mount a shared root by its MountSpec. It is in use then. If it is writable there, Mount shows the same overlay.
func TestMountSpec(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	for _, readOnly := range []bool{false, true} {
		spec, err := s.Backend.(cowcommon.SpecMounter).MountSpec(ctx, "c", readOnly)
		require.NoError(t, err)
		at := t.TempDir()
		flags := uintptr(0)
		if readOnly {
			flags = unix.MS_RDONLY
		}
		options := strings.Join(spec.Options, ",")
		options = strings.ReplaceAll(options, ",noatime", "")
		require.NoError(t, unix.Mount(spec.Source, at, spec.Type, flags, options))
		if readOnly {
			require.ErrorIs(t, os.WriteFile(at+"/etc/conf", nil, 0o600), unix.EROFS)
		} else {
			s.typical(at)
		}
		if readOnly {
			_, err = s.Mount(ctx, "c", "")
			require.ErrorIs(t, err, fault.ErrInUse, "a second overlay of one upper")
		} else {
			s.showsOther("c", at)
		}
		require.ErrorIs(t, s.Remove(ctx, "c"), fault.ErrInUse)
		require.ErrorIs(t, cowcommon.Seal(ctx, s.Backend, "c"), fault.ErrInUse)
		require.ErrorIs(t, cowcommon.Rename(ctx, s.Backend, "c", "d"), fault.ErrInUse)
		assert.Equal(t, typicalChanges, s.changes("c", "image", true))
		require.NoError(t, unix.Unmount(at, 0))
	}
	spec, err := s.Backend.(cowcommon.SpecMounter).MountSpec(ctx, "image", true)
	require.NoError(t, err)
	assert.Equal(t, "btrfs", spec.Type)
	require.NoError(t, cowcommon.Seal(ctx, s.Backend, "c"))
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))
}

// showsOther mounts a volume that others have mounted, and unmounts it. Both are one filesystem, and theirs stays.
func (s *store) showsOther(name, at string) {
	s.t.Helper()
	dir := s.mount(name)
	var here, there unix.Stat_t
	require.NoError(s.t, errors.Join(unix.Stat(dir, &here), unix.Stat(at, &there)))
	assert.Equal(s.t, there.Dev, here.Dev)
	assert.Equal(s.t, dir, s.mount(name), "mounts are counted")
	require.NoError(s.t, os.WriteFile(dir+"/etc/through", nil, 0o600))
	require.NoError(s.t, os.Remove(at+"/etc/through"))
	s.unmount(name)
	s.unmount(name)
	assert.Empty(s.t, overlaysBelow(s.t, s.home))
	assert.FileExists(s.t, at+"/etc/conf")

	require.NoError(s.t, unix.Mount("none", at, "tmpfs", 0, ""))
	_, err := s.Mount(s.t.Context(), name, "")
	require.ErrorIs(s.t, err, fault.ErrInUse, "another mount covers it")
	require.NoError(s.t, unix.Unmount(at, 0))
	assert.Empty(s.t, overlaysBelow(s.t, s.home))
}

// TestKilledWhileBound: a process ends while it shows the overlay of others. It is gone when they mount the volume again.
func TestKilledWhileBound(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	for range 2 {
		at := t.TempDir()
		s.mountSpec("c", "", at)
		require.Empty(t, overlaysBelow(t, s.home))
		s.mount("c")
		s.crash()
		s.open()
		require.NoError(t, os.WriteFile(at+"/etc/conf", nil, 0o600))
		require.NoError(t, unix.Unmount(at, 0))
	}
	require.NoError(t, s.Remove(t.Context(), "c"))
	assert.Empty(t, overlaysBelow(t, s.home))
}

// claimedBackend calls a function when a volume has been claimed and found unused.
type claimedBackend struct {
	*btrfs.Backend
	claimed func()
}

func (b *claimedBackend) Alone(ctx context.Context, name string, do func(root *os.File) error) error {
	return b.Backend.Alone(ctx, name, func(root *os.File) error {
		b.claimed()
		return do(root)
	})
}

// Others mount a shared root at the moment in which it is sealed. It stays shared, and has all that they write.
func TestMountedWhileSealed(t *testing.T) {
	testfs.CheckLeaks(t)
	home := filepath.Join(testfs.Btrfs(t), "home")
	claimed := &claimedBackend{claimed: func() {}}
	s := openStore(t, home, func() (_ cowcommon.Backend, err error) {
		claimed.Backend, err = btrfs.Open(t.Context(), home, btrfs.Options{})
		return claimed, err
	})
	s.image("image")
	s.container("c", "image")
	spec, err := s.Backend.(cowcommon.SpecMounter).MountSpec(t.Context(), "c", false)
	require.NoError(t, err)
	at := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // of a test that has failed
	claimed.claimed = func() {
		options := strings.ReplaceAll(strings.Join(spec.Options, ","), ",noatime", "")
		require.NoError(t, unix.Mount(spec.Source, at, spec.Type, 0, options))
	}
	err = cowcommon.Seal(t.Context(), s.Backend, "c")
	claimed.claimed = func() {}
	require.ErrorIs(t, err, fault.ErrInUse)
	s.hasStyle("c", cowcommon.SharedRoot)
	s.typical(at)
	require.NoError(t, unix.Unmount(at, 0))
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "c"))
	s.isSealed("c", cowcommon.SnapshotRoot)
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))
}

// A crash leaves mounts and changes of style that have begun. The next start cleans up.
func testRestart(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	for _, name := range []string{"mounted", "busy", "folding", "cloned"} {
		s.container(name, "image")
	}
	s.typical(s.mount("mounted"))
	busy := s.mount("busy")
	s.typical(busy)
	s.edit("folding", s.typical)
	s.inside("folding", func(dir string) {
		require.NoError(t, os.Rename(dir+"/.cowshed/upper", dir+"/.cowshed/folding"))
	})
	s.inside("cloned", func(dir string) { require.NoError(t, os.RemoveAll(dir+"/.cowshed")) }) // killed between clone and prepare
	container := t.TempDir()
	require.NoError(t, unix.Mount(busy, container, "", unix.MS_BIND, ""))
	_, err := s.View(ctx, "mounted")
	require.NoError(t, err)
	require.Len(t, overlaysBelow(t, s.home), 3)

	s.crash()
	s.open()
	assert.Equal(t, []string{"busy"}, overlaysBelow(t, s.home), "a container may run in it")
	assert.Equal(t, typicalChanges, s.changes("folding", "image", true))
	s.hasStyle("folding", cowcommon.SnapshotRoot)
	s.inside("folding", func(dir string) { assert.NoDirExists(t, dir+"/.cowshed") })
	s.hasStyle("cloned", cowcommon.SnapshotRoot)
	require.NoError(t, s.Remove(ctx, "cloned"))

	assert.Equal(t, busy, s.mount("busy"), "the mount that the container has")
	require.NoError(t, os.WriteFile(container+"/through", []byte("the container"), 0o600))
	assert.FileExists(t, busy+"/through")
	require.NoError(t, unix.Unmount(container, 0))
	s.unmount("busy")
	assert.Empty(t, overlaysBelow(t, s.home))
	s.edit("mounted", func(dir string) { assert.FileExists(t, dir+"/new/dir/file") })
}

// Privileged containers can make the mark of a shared root. Without a note of the home it says nothing.
func TestForgedMark(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.image("victim")
	require.NoError(t, s.Clone(t.Context(), "c", "image", cowcommon.VolumeOptions{}))
	s.edit("c", func(dir string) {
		own := filepath.Join(dir, sharedmark.Dir)
		require.NoError(t, os.Mkdir(own, 0o700))
		require.NoError(t, unix.Setxattr(own, sharedmark.Xattr, []byte("1 victim"), 0))
		require.NoError(t, os.Symlink("/etc", filepath.Join(own, "upper")))
	})
	for range 2 { // before and after a start
		s.hasStyle("c", cowcommon.SnapshotRoot)
		s.edit("c", func(dir string) { assert.DirExists(t, filepath.Join(dir, sharedmark.Dir)) })
		require.NoError(t, s.Close())
		s.open()
	}
	require.NoError(t, s.Remove(t.Context(), "victim"))
	require.NoError(t, cowcommon.SetRootStyle(t.Context(), s.Backend, "c", cowcommon.SnapshotRoot))
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "c"))
	s.edit("c", func(dir string) { assert.DirExists(t, filepath.Join(dir, sharedmark.Dir)) })
}

// TestTurnOn: shared roots are turned on only while nobody works on the home without them.
func TestTurnOn(t *testing.T) {
	home := filepath.Join(testfs.Btrfs(t), "volumes")
	off, err := btrfs.Open(t.Context(), home, btrfs.Options{})
	require.NoError(t, err)
	end, isOn, err := sharedroot.StayOff(t.Context(), home)
	require.NoError(t, err)
	require.False(t, isOn)
	backend, err := btrfs.Open(t.Context(), home, btrfs.Options{})
	require.NoError(t, err)
	_, err = sharedroot.New(t.Context(), backend, home, sharedroot.Options{})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.False(t, sharedroot.IsOn(home))
	require.NoError(t, end())
	end, isOn, err = sharedroot.StayOffReading(t.Context(), home)
	require.NoError(t, err)
	require.False(t, isOn)
	_, err = sharedroot.New(t.Context(), backend, home, sharedroot.Options{})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "a reader does not know of them")
	require.NoError(t, end())
	require.NoError(t, off.Close())

	on, err := sharedroot.New(t.Context(), backend, home, sharedroot.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, on.Close()) }()
	for _, stayOff := range []func(context.Context, string) (func() error, bool, error){sharedroot.StayOff, sharedroot.StayOffReading} {
		_, isOn, err = stayOff(t.Context(), home)
		require.NoError(t, err)
		require.True(t, isOn)
	}
}

// TestOutdatedNote: a note that a crash left about an ordinary volume keeps nobody from cloning it while it is in use.
func TestOutdatedNote(t *testing.T) {
	s := newStore(t)
	s.image("image")
	require.NoError(t, s.Clone(t.Context(), "c", "image", cowcommon.VolumeOptions{}))
	require.NoError(t, os.Symlink("image", filepath.Join(s.home, "shared", "c")))
	s.mount("c")
	require.NoError(t, s.Clone(t.Context(), "d", "c", cowcommon.VolumeOptions{}))
	s.unmount("c")
	require.NoFileExists(t, filepath.Join(s.home, "shared", "c"))
	require.NoError(t, os.Symlink("image", filepath.Join(s.home, "shared", "d")))
	require.NoError(t, s.Close())
	s.open()
	assert.NoFileExists(t, filepath.Join(s.home, "shared", "d"))
}

// An overlay that is busy when its last user gives it back stays, and is used again or unmounted later.
func testBusyUnmount(t *testing.T, s *store) {
	s.image("image")
	s.container("c", "image")
	dir := s.mount("c")
	f, err := os.Create(dir + "/open")
	require.NoError(t, err)
	s.unmount("c")
	assert.Equal(t, []string{"c"}, overlaysBelow(t, s.home))
	require.ErrorIs(t, s.Remove(t.Context(), "c"), fault.ErrInUse)
	assert.Equal(t, dir, s.mount("c"))
	s.unmount("c")
	require.NoError(t, f.Close())
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "c"))
	assert.Empty(t, overlaysBelow(t, s.home))
}

func testLimit(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	limit := quota.Limit{Bytes: 8 << 20}
	require.NoError(t, s.Clone(ctx, "c", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot, Limit: limit}))
	dir := s.mount("c")
	f, err := os.OpenFile(dir+"/big", os.O_WRONLY, 0) // a copy of the image's file costs nothing
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.ErrorIs(t, os.WriteFile(dir+"/too-much", noise(16<<20), 0o600), unix.EDQUOT)
	require.NoError(t, os.Remove(dir+"/too-much"))
	s.unmount("c")
	testfs.Sync(t, s.home)
	assert.EventuallyWithT(t, func(c *assert.CollectT) { // the kernel gives the space of a removed file back in the background
		usage, err := cowcommon.Usage(ctx, s.Backend, "c")
		require.NoError(c, err)
		assert.Less(c, usage.Bytes, uint64(1<<20))
	}, testfs.Patience, 50*time.Millisecond)
	require.NoError(t, cowcommon.SetLimit(ctx, s.Backend, "c", quota.Limit{}))
}

// noise is data that cannot be compressed.
func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.Read(data) // never fails
	return data
}

// The style of a volume changes, to and fro, and its tree and its changes stay.
func testSetRootStyle(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	s.edit("c", s.typical)
	read := func() (tree treecmp.Tree) {
		s.edit("c", func(dir string) {
			var err error
			tree, err = treecmp.Read(dir, links)
			require.NoError(t, err)
		})
		return tree
	}
	want := read()
	s.mount("c")
	require.ErrorIs(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot), fault.ErrInUse)
	s.unmount("c")
	styles := []cowcommon.RootStyle{cowcommon.SharedRoot, cowcommon.SnapshotRoot, cowcommon.SnapshotRoot, cowcommon.SharedRoot, cowcommon.SharedRoot, cowcommon.SnapshotRoot}
	for _, style := range styles {
		require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", style))
		s.hasStyle("c", style)
		assert.Empty(t, want.Diff(read(), links), style)
		assert.Equal(t, typicalChanges, s.changes("c", "image", true), style)
	}
	s.mount("c")
	require.ErrorIs(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SharedRoot), fault.ErrInUse)
	s.unmount("c")
	require.ErrorIs(t, cowcommon.SetRootStyle(ctx, s.Backend, "image", cowcommon.SharedRoot), errdefs.ErrFailedPrecondition, "without a parent")
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "image", cowcommon.SnapshotRoot))

	// A clone that never was shared, of a volume that shares the image.
	s.container("init", "image")
	s.edit("init", s.typical)
	require.NoError(t, cowcommon.SealAsIs(ctx, s.Backend, "init"))
	s.isSealed("init", cowcommon.SharedRoot)
	require.NoError(t, s.Clone(ctx, "d", "init", cowcommon.VolumeOptions{}))
	s.edit("d", func(dir string) { require.NoError(t, os.WriteFile(dir+"/etc/more", nil, 0o600)) })
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "d", cowcommon.SharedRoot))
	s.hasStyle("d", cowcommon.SharedRoot)
	assert.Equal(t, slices.Insert(slices.Clone(typicalChanges), 2, "A /etc/more"), s.changes("d", "image", true))
	require.ErrorIs(t, cowcommon.SetRootStyle(ctx, s.Backend, "absent", cowcommon.SnapshotRoot), errdefs.ErrNotFound)
}

// A kept state has the style of its moment, and cannot be restored without the lower.
func testKeep(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	s.edit("c", s.typical)
	kept, err := cowcommon.Keep(ctx, s.Backend, "c")
	require.NoError(t, err)
	s.edit("c", func(dir string) { require.NoError(t, os.RemoveAll(dir+"/etc")) })
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot))
	require.NoError(t, kept.Restore(ctx))
	require.NoError(t, kept.Close())
	s.hasStyle("c", cowcommon.SharedRoot)
	assert.Equal(t, typicalChanges, s.changes("c", "image", true))

	if s.keepsOrigins {
		return
	}
	kept, err = cowcommon.Keep(ctx, s.Backend, "c")
	require.NoError(t, err)
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot))
	require.NoError(t, s.Remove(ctx, "image"))
	require.ErrorIs(t, kept.Restore(ctx), errdefs.ErrFailedPrecondition)
	require.NoError(t, kept.Close())
}

// Two Backends on one home, as in two processes, share a mount and respect each other's.
func testTwoBackends(t *testing.T, s *store) {
	s.image("image")
	s.container("c", "image")
	other := &store{t: t, home: s.home, start: s.start}
	other.open()
	dir := s.mount("c")
	assert.Equal(t, dir, other.mount("c"))
	require.ErrorIs(t, other.Remove(t.Context(), "image"), fault.ErrInUse)
	s.unmount("c")
	assert.Equal(t, []string{"c"}, overlaysBelow(t, s.home), "the other has it mounted")
	require.ErrorIs(t, s.Remove(t.Context(), "c"), fault.ErrInUse)
	s.typical(dir)
	other.unmount("c")
	assert.Empty(t, overlaysBelow(t, s.home))
	require.NoError(t, other.Close())
	require.NoError(t, s.Remove(t.Context(), "c"))
}

// A shared root that cannot be, since its name cannot be in the options of a mount, is refused before anything is made.
func TestNameWithColon(t *testing.T) {
	s := newStore(t)
	s.image("a:b")
	err := s.Clone(t.Context(), "c", "a:b", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = s.Stat(t.Context(), "c")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

// TestFullAtFirst: where the first overlay cannot be tried or mounted for want of space, the next one is tried again.
func TestFullAtFirst(t *testing.T) {
	testfs.CheckLeaks(t)
	mnt := testfs.Btrfs(t, testfs.WithSize(256<<20))
	home := filepath.Join(mnt, "home")
	s := openStore(t, home, func() (cowcommon.Backend, error) { return btrfs.Open(t.Context(), home, btrfs.Options{}) })
	s.image("image")
	s.container("c", "image")
	require.NoError(t, s.Close())
	s.open()
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)
	_, mountErr := s.Mount(t.Context(), "c", "")
	_, specErr := s.Backend.(cowcommon.SpecMounter).MountSpec(t.Context(), "c", false)
	for _, err := range []error{mountErr, specErr} {
		require.Error(t, err)
		assert.True(t, fault.IsFull(err), "%v", err)
		assert.False(t, errdefs.IsNotImplemented(err), "%v", err)
	}
	require.NoError(t, os.RemoveAll(filepath.Join(mnt, "filler")))
	s.edit("c", s.typical)
	_, specErr = s.Backend.(cowcommon.SpecMounter).MountSpec(t.Context(), "c", false)
	require.NoError(t, specErr)
}

// A Backend that is open for reading alone shows shared roots, and completes nothing.
func TestReadOnly(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	s.edit("c", s.typical)
	require.NoError(t, s.Close())
	mnt := filepath.Dir(s.home)
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	inner, err := btrfs.OpenReadOnly(t.Context(), s.home, btrfs.Options{}, fmt.Errorf("it is"))
	require.NoError(t, err)
	b, err := sharedroot.New(t.Context(), inner, s.home, sharedroot.Options{ReadOnly: true})
	require.NoError(t, err)
	read := &store{t: t, home: s.home, Backend: b}
	read.edit("c", func(dir string) {
		assert.FileExists(t, dir+"/new/dir/file")
		require.ErrorIs(t, os.WriteFile(dir+"/x", nil, 0o600), unix.EROFS)
	})
	assert.Equal(t, typicalChanges, read.changes("c", "image", true))
	require.ErrorIs(t, b.Remove(t.Context(), "c"), cowcommon.ErrReadOnly)
	require.ErrorIs(t, cowcommon.Seal(t.Context(), b, "c"), cowcommon.ErrReadOnly)
	require.NoError(t, b.Close())
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, ""))
	s.open()
}

// Backends that are open for reading alone use one overlay of a volume, as in two processes. It stays as long as it is mounted
// elsewhere.
func TestReadOnlyMountsOnce(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	require.NoError(t, s.Close())
	open := func() *store {
		inner, err := btrfs.OpenReadOnly(t.Context(), s.home, btrfs.Options{}, fmt.Errorf("it is"))
		require.NoError(t, err)
		b, err := sharedroot.New(t.Context(), inner, s.home, sharedroot.Options{ReadOnly: true})
		require.NoError(t, err)
		return &store{t: t, home: s.home, Backend: b}
	}
	first, second := open(), open()
	dir := first.mount("c")
	assert.Equal(t, dir, second.mount("c"))
	assert.Len(t, overlaysBelow(t, filepath.Dir(dir)), 1)
	first.unmount("c")
	assert.FileExists(t, dir+"/etc/conf")
	at := t.TempDir()
	require.NoError(t, unix.Mount(dir, at, "", unix.MS_BIND, ""))
	second.unmount("c")
	assert.Len(t, overlaysBelow(t, filepath.Dir(dir)), 1)
	assert.Equal(t, dir, first.mount("c"))
	assert.Len(t, overlaysBelow(t, filepath.Dir(dir)), 1)
	require.NoError(t, unix.Unmount(at, 0))
	first.unmount("c")
	assert.Empty(t, overlaysBelow(t, filepath.Dir(dir)))

	_, err := first.View(t.Context(), "c")
	require.ErrorIs(t, err, cowcommon.ErrReadOnly, "it is not sealed")
	require.NoError(t, first.Close())
	require.NoError(t, second.Close())
	s.open()
}

// The views of a killed process go at the next start of another, while others have the home open.
func TestViewsOfTheKilled(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	v, err := s.View(t.Context(), "c")
	require.NoError(t, err)
	killed := &store{t: t, home: s.home, start: s.start}
	killed.open()
	left, err := killed.View(t.Context(), "c")
	require.NoError(t, err)
	killed.mount("c")
	require.Len(t, overlaysBelow(t, s.home), 3)
	killed.crash()
	next := &store{t: t, home: s.home, start: s.start}
	next.open()
	assert.Equal(t, []string{filepath.Base(v.Dir())}, overlaysBelow(t, s.home))
	assert.NoDirExists(t, left.Dir())
	require.NoError(t, next.Close())
	require.NoError(t, v.Close())
}

// Readers that were killed keep nobody from writing.
func TestOverlaysOfKilledReaders(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.container("sealed", "image")
	require.NoError(t, cowcommon.SealAsIs(ctx, s.Backend, "sealed"))
	s.container("c", "image")
	read := func() *store {
		inner, err := btrfs.OpenReadOnly(ctx, s.home, btrfs.Options{}, fmt.Errorf("it is"))
		require.NoError(t, err)
		b, err := sharedroot.New(ctx, inner, s.home, sharedroot.Options{ReadOnly: true})
		require.NoError(t, err)
		return &store{t: t, home: s.home, Backend: b, inner: inner}
	}
	killed := read()
	points := filepath.Dir(killed.mount("c"))
	t.Cleanup(func() { _ = unix.Unmount(points, unix.MNT_DETACH) }) // with all overlays of a test that has failed
	require.Equal(t, []string{"c"}, overlaysBelow(t, points))
	killed.crash()
	s.edit("c", s.typical) // in a process that runs on
	assert.Empty(t, overlaysBelow(t, points))

	killed = read()
	killed.mount("c")
	killed.crash()
	require.NoError(t, s.Close())
	s.open()
	assert.Empty(t, overlaysBelow(t, points))

	reader := read()
	reader.mount("c")
	reader.mount("sealed")
	s.edit("sealed", func(dir string) { assert.FileExists(t, dir+"/etc/conf") })
	_, err := s.Mount(ctx, "c", "")
	require.ErrorIs(t, err, fault.ErrInUse, "of a reader that lives")
	reader.unmount("c")
	reader.unmount("sealed")
	require.NoError(t, reader.Close())
	s.edit("c", func(dir string) { assert.FileExists(t, dir+"/new/dir/file") })
}

// A clone that fails at its last step leaves nothing.
func testFailedClone(t *testing.T, s *store) {
	require.NoError(t, s.Create(t.Context(), "odd", cowcommon.VolumeOptions{}))
	s.edit("odd", func(dir string) { require.NoError(t, os.Mkdir(dir+"/.cowshed", 0o755)) })
	err := s.Clone(t.Context(), "c", "odd", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	_, err = s.Stat(t.Context(), "c")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, s.Clone(t.Context(), "c", "odd", cowcommon.VolumeOptions{}))
	s.edit("c", func(dir string) { assert.DirExists(t, dir+"/.cowshed") })
}

// Another mount namespace has a copy of an overlay that was mounted when the namespace was made. The copy keeps nothing
// in use.
func TestCopiedNamespace(t *testing.T) {
	s := newStore(t)
	s.image("image")
	s.container("c", "image")
	s.mount("c")
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation=private", "--", "sh", "-c", "echo ready; read wait")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	require.NoError(t, err)
	s.unmount("c")
	require.NoError(t, cowcommon.Seal(t.Context(), s.Backend, "c"))
	require.NoError(t, in.Close())
	_ = cmd.Wait() // read fails at the end of its input
}

// A container that has reached its limit can be committed, and has its limit afterwards.
func testFullLimit(t *testing.T, s *store) {
	ctx := t.Context()
	s.image("image")
	limit := quota.Limit{Bytes: 2 << 20}
	require.NoError(t, s.Clone(ctx, "c", "image", cowcommon.VolumeOptions{RootStyle: cowcommon.SharedRoot, Limit: limit}))
	s.edit("c", func(dir string) {
		var err error
		for d := 0; err == nil; d++ {
			at := fmt.Sprintf("%s/etc/deep/%d", dir, d)
			err = os.Mkdir(at, 0o755)
			for f := 0; err == nil && f < 100; f++ {
				err = os.WriteFile(fmt.Sprintf("%s/%d", at, f), noise(1000), 0o600)
			}
		}
		require.ErrorIs(t, err, unix.EDQUOT)
	})
	require.NoError(t, cowcommon.SetRootStyle(ctx, s.Backend, "c", cowcommon.SnapshotRoot))
	v, err := s.Stat(ctx, "c")
	require.NoError(t, err)
	assert.Equal(t, limit, v.Limit)
	s.inside("c", func(dir string) {
		assert.FileExists(t, dir+"/etc/deep/0/99")
		assert.NoDirExists(t, dir+"/.cowshed")
	})
}

// A crash while a limit is lifted for a fold does not lose the limit.
func TestLiftedLimitAfterCrash(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	s.container("c", "image")
	require.NoError(t, os.Symlink("8388608 layer", s.home+"/shared/.limit-c"))
	require.NoError(t, os.Symlink("8388608 layer", s.home+"/shared/.limit-gone"))
	s.crash()
	s.open()
	v, err := s.Stat(ctx, "c")
	require.NoError(t, err)
	assert.Equal(t, quota.Limit{Bytes: 8 << 20}, v.Limit)
	notes, err := filepath.Glob(s.home + "/shared/.*")
	require.NoError(t, err)
	assert.Empty(t, notes)
}

// A limit that is set after a crash in a fold stays. The note of the former one has no effect, under any name.
func TestLimitAfterLiftedLimit(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	s.image("image")
	note := func(name string) {
		require.NoError(t, os.Symlink("8388608 layer", s.home+"/shared/.limit-"+name))
	}
	has := func(name string, bytes uint64) {
		t.Helper()
		v, err := s.Stat(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, bytes, v.Limit.Bytes, name)
		assert.NoFileExists(t, s.home+"/shared/.limit-"+name)
	}
	for name, bytes := range map[string]uint64{"later": 4 << 20, "none": 0} {
		s.container(name, "image")
		note(name)
		require.NoError(t, cowcommon.SetLimit(ctx, s.Backend, name, quota.Limit{Bytes: bytes}))
		s.edit(name, s.typical)
		has(name, bytes)
		require.NoError(t, cowcommon.Seal(ctx, s.Backend, name))
		has(name, bytes)
	}
	s.container("spec", "image")
	note("spec")
	_, err := s.Backend.(cowcommon.SpecMounter).MountSpec(ctx, "spec", false)
	require.NoError(t, err)
	has("spec", 8<<20)
	s.container("old", "image")
	note("old")
	require.NoError(t, cowcommon.Rename(ctx, s.Backend, "old", "new"))
	has("new", 8<<20)
	note("gone")
	s.container("gone", "image")
	has("gone", 0)
}
