package cowdriver_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// cachedPages counts the pages of a file that are cached.
func cachedPages(t *testing.T, name string) (cached int) {
	t.Helper()
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(mapped)) }()
	pages := make([]byte, (len(mapped)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&pages[0])))
	require.Zero(t, errno)
	for _, page := range pages {
		cached += int(page & 1)
	}
	return cached
}

// forgetPages makes the kernel drop the cached pages of a file. It keeps those that something else works with at that moment.
func forgetPages(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	for begun, cached := time.Now(), true; cached && time.Since(begun) < testfs.Patience; {
		require.NoError(t, f.Sync())
		require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		cached = cachedPages(t, name) > 0
	}
}

// TestSharedRootSharesPages: pages of the image that one container has read are cached for the others too. Each container
// has a layer of the engine's own between itself and the image.
func TestSharedRootSharesPages(t *testing.T) {
	const pages = 64
	d := newDriver(t, "btrfs.root_style=shared")
	require.NoError(t, d.Create("image", "", nil))
	write(t, d, "image", "file", pages*os.Getpagesize())
	for style, want := range map[string]int{"snapshot": 0, "shared": pages} {
		one, two := "one-"+style, "two-"+style
		for _, id := range []string{one, two} {
			opts := &graphdriver.CreateOpts{StorageOpt: map[string]string{"root_style": style}}
			require.NoError(t, d.CreateReadWrite(id+"-init", "image", opts))
			write(t, d, id+"-init", "hosts", 0)
			require.NoError(t, d.CreateReadWrite(id, id+"-init", opts))
			changes, err := d.Changes(id, id+"-init")
			require.NoError(t, err)
			assert.Empty(t, changes)
		}
		inLayer(t, d, one, func(oneDir string) {
			inLayer(t, d, two, func(twoDir string) {
				for _, dir := range []string{oneDir, twoDir} {
					forgetPages(t, filepath.Join(dir, "file"))
				}
				require.Zero(t, cachedPages(t, filepath.Join(twoDir, "file")))
				_, err := os.ReadFile(filepath.Join(oneDir, "file"))
				require.NoError(t, err)
				assert.Equal(t, want, cachedPages(t, filepath.Join(twoDir, "file")), style)
			})
		})
	}
}
