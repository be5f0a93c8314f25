package treediff

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// grow makes n files in directories of 20, which lie in directories of 20.
func grow(b *testing.B, root string, n int) {
	b.Helper()
	ts := []unix.Timespec{{Sec: 1_500_000_000}, {Sec: 1_500_000_000}}
	content := make([]byte, 4<<10)
	dir := ""
	for i := range n {
		if i%20 == 0 {
			dir = filepath.Join(root, fmt.Sprintf("dir%d", i/400), fmt.Sprintf("sub%d", i/20))
			require.NoError(b, os.MkdirAll(dir, 0o755))
		}
		path := filepath.Join(dir, "file"+strconv.Itoa(i))
		require.NoError(b, os.WriteFile(path, content, 0o644))
		require.NoError(b, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0))
	}
}

// grown returns a tree of n files, its clone with three changes, and the hints for them.
func grown(b *testing.B, n int) (top, base string, h *Hints) {
	b.Helper()
	mnt := testfs.Btrfs(b)
	base, top = filepath.Join(mnt, "base"), filepath.Join(mnt, "top")
	subvolume(b, "create", base)
	grow(b, base, n)
	subvolume(b, "snapshot", base, top)
	require.NoError(b, os.Chmod(filepath.Join(top, "dir0/sub0/file1"), 0o600))
	require.NoError(b, os.Remove(filepath.Join(top, "dir0/sub1/file21")))
	require.NoError(b, os.WriteFile(filepath.Join(top, "dir1/new"), nil, 0o600))
	h = hints("dir0", "dir0/sub0/file1", "dir0/sub1", "dir0/sub1/file21", "dir1", "dir1/new")
	return top, base, h
}

func BenchmarkCompare(b *testing.B) {
	for _, n := range []int{10_000, 50_000} {
		b.Run("files="+strconv.Itoa(n), func(b *testing.B) {
			top, base, h := grown(b, n)
			run := func(name string, changes int, f func() ([]archive.Change, error)) {
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						list, err := f()
						require.NoError(b, err)
						require.Len(b, list, changes)
					}
				})
			}
			all := n + n/20 + n/400 - 1 + 1
			run("hints", 7, func() ([]archive.Change, error) { return Compare(b.Context(), top, base, h) })
			run("walk", 7, func() ([]archive.Change, error) { return Compare(b.Context(), top, base, nil) })
			run("adds", all, func() ([]archive.Change, error) { return Compare(b.Context(), top, "", nil) })
			run("go-archive", 7, func() ([]archive.Change, error) { return archive.ChangesDirs(top, base) })
			run("go-archive-adds", all, func() ([]archive.Change, error) { return archive.ChangesDirs(top, "") })
		})
	}
}

func BenchmarkSize(b *testing.B) {
	top, _, _ := grown(b, 10_000)
	list := mustCompare(b, top, "", nil)
	b.ReportAllocs()
	for b.Loop() {
		_, err := Size(b.Context(), top, list)
		require.NoError(b, err)
	}
}
