package treediff

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// deepTree makes a root with a chain of directories below it, each with a file and a side directory with a file in
// it. It calls last with a descriptor of the last directory.
func deepTree(t testing.TB, root, name string, levels int, last func(fd int)) {
	t.Helper()
	require.NoError(t, os.Mkdir(root, 0o755))
	fd, err := openRoot(root)
	require.NoError(t, err)
	touch := func(fd int, name string) {
		f, err := unix.Openat(fd, name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		require.NoError(t, err)
		require.NoError(t, unix.Close(f))
		require.NoError(t, unix.UtimesNanoAt(fd, name, make([]unix.Timespec, 2), 0))
	}
	for range levels {
		require.NoError(t, unix.Mkdirat(fd, name, 0o755))
		touch(fd, "file")
		require.NoError(t, unix.Mkdirat(fd, "side", 0o755))
		side, err := openDir(fd, "side")
		require.NoError(t, err)
		touch(side, "file")
		require.NoError(t, unix.Close(side))

		next, err := openDir(fd, name)
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
		fd = next
	}
	last(fd)
	require.NoError(t, unix.Close(fd))
}

// limitProcess leaves the process few descriptors, and each goroutine little stack, until the test ends.
func limitProcess(t testing.TB) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	limit := unix.Rlimit{Cur: uint64(len(open) + 8 + 2*openDirs*numWorkers()), Max: old.Max}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	stack := debug.SetMaxStack(256 << 10)
	t.Cleanup(func() {
		debug.SetMaxStack(stack)
		assert.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	})
}

// TestDeep compares trees that are deeper than a path can be long and than a worker's descriptors reach, with
// little stack.
func TestDeep(t *testing.T) {
	testfs.CheckLeaks(t)
	const levels = 5000
	name := strings.Repeat("d", 40)
	dir := memDir(t)
	top, base := filepath.Join(dir, "top"), filepath.Join(dir, "base")
	deepTree(t, base, name, levels, func(int) {})
	deepTree(t, top, name, levels, func(fd int) { require.NoError(t, unix.Mkdirat(fd, "new", 0o755)) })
	limitProcess(t)

	changes := mustCompare(t, top, base, nil)
	require.Len(t, changes, levels+1)
	for i, c := range changes[:levels] {
		require.Equal(t, archive.ChangeType(archive.ChangeModify), c.Kind)
		require.Len(t, c.Path, (i+1)*(1+len(name)))
	}
	assert.Equal(t, archive.ChangeType(archive.ChangeAdd), changes[levels].Kind)
	assert.True(t, strings.HasSuffix(changes[levels].Path, "d/new"))

	// The same with hints. The trees are not clones: hinted directories are compared in full.
	assert.True(t, slices.Equal(changes, mustCompare(t, top, base, hints(changes[levels].Path))))

	size, err := Size(t.Context(), top, changes)
	require.NoError(t, err)
	assert.Zero(t, size)
}

// TestDeepAdded lists a deep tree as added.
func TestDeepAdded(t *testing.T) {
	testfs.CheckLeaks(t)
	const levels = 3000
	top := filepath.Join(memDir(t), "top")
	deepTree(t, top, "d", levels, func(fd int) {
		require.NoError(t, unix.Mkdirat(fd, "last", 0o755))
	})
	limitProcess(t)
	changes := mustCompare(t, top, "", nil)
	require.Len(t, changes, levels*4+1)
	assert.True(t, slices.IsSortedFunc(changes, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) }))

	size, err := Size(t.Context(), top, changes)
	require.NoError(t, err)
	assert.Zero(t, size)
}

// TestDeepClone finds a change in a deep clone by its hint, and a side directory of every level by another.
func TestDeepClone(t *testing.T) {
	const levels = 2000
	mnt := testfs.Btrfs(t)
	base, top := filepath.Join(mnt, "base"), filepath.Join(mnt, "top")
	subvolume(t, "create", base)
	deepTree(t, filepath.Join(base, "root"), "d", levels, func(int) {})
	subvolume(t, "snapshot", base, top)

	h := &Hints{}
	path := "root"
	fd, err := openRoot(filepath.Join(top, path))
	require.NoError(t, err)
	for range levels {
		require.NoError(t, unix.Unlinkat(fd, "side/file", 0))
		h.Add(path+"/side", 0)
		h.Add(path+"/side/file", 0)
		path += "/d"
		next, err := openDir(fd, "d")
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
		fd = next
	}
	require.NoError(t, unix.Close(fd))

	limitProcess(t)
	changes := mustCompare(t, top, base, h)
	require.Len(t, changes, levels*3)
	assert.True(t, slices.Equal(changes, mustCompare(t, top, base, nil)))
}

// TestPathsShareMemory checks that a chain of changed directories does not take memory for each path.
func TestPathsShareMemory(t *testing.T) {
	const levels = 1000
	name := strings.Repeat("n", 255)
	dir := memDir(t)
	top, base := filepath.Join(dir, "top"), filepath.Join(dir, "base")
	deepTree(t, base, name, levels, func(int) {})
	deepTree(t, top, name, levels, func(fd int) { require.NoError(t, unix.Mkdirat(fd, "new", 0o755)) })
	w := newWalk(top, base, nil)
	changes, err := w.changeList(t.Context())
	require.NoError(t, err)
	require.Len(t, changes, levels+1)
	assert.Equal(t, int64(len(changes[levels].Path)), w.held.Load())
	for _, c := range changes {
		require.Same(t, unsafe.StringData(changes[0].Path), unsafe.StringData(c.Path))
	}
}

func TestTooLarge(t *testing.T) {
	testfs.CheckLeaks(t)
	old := maxPathBytes
	maxPathBytes = 1000
	defer func() { maxPathBytes = old }()
	f := tree{t, t.TempDir()}
	for i := range 100 {
		f.files("dir" + string(rune('a'+i%26)) + "/file" + string(rune('a'+i/26)))
	}
	_, err := Compare(t.Context(), f.root, "", nil)
	assert.ErrorIs(t, err, ErrTooLarge)
	_, err = Compare(t.Context(), f.root, f.root, nil)
	assert.NoError(t, err)
}
