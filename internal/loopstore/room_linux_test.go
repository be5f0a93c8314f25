package loopstore

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// newStoreOn returns a store that is not there yet, on a filesystem of its own that has room for so many bytes.
func newStoreOn(t *testing.T, size string) Store {
	t.Helper()
	testfs.Root(t)
	host := t.TempDir()
	require.NoError(t, unix.Mount("host", host, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(host, 0)) })
	s, err := At(filepath.Join(host, "store"))
	require.NoError(t, err)
	t.Cleanup(func() {
		if state, err := s.State(); err == nil && state != Absent {
			assert.NoError(t, s.Remove(context.Background()))
		}
	})
	return s
}

func TestMakeWithoutRoom(t *testing.T) {
	s := newStoreOn(t, "64M")
	_, err := s.Make(t.Context(), MinSize, false)
	require.ErrorIs(t, err, ErrNoRoom)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.ErrorContains(t, err, "256MiB")
	assert.ErrorContains(t, err, "64MiB")
	entries, err := os.ReadDir(filepath.Dir(s.Root))
	require.NoError(t, err)
	assert.Empty(t, entries, "nothing is left")

	made, err := s.Make(t.Context(), MinSize, true)
	require.NoError(t, err)
	assert.Equal(t, Made{Image: true, Mount: true, Size: MinSize}, made)
	room, err := s.Room()
	require.NoError(t, err)
	assert.Greater(t, room.MayTake, room.Free)
	assert.Less(t, room.Free, uint64(64<<20))

	_, err = s.Make(t.Context(), 2*MinSize, false)
	require.ErrorIs(t, err, ErrNoRoom, "making it larger")
	made, err = s.Make(t.Context(), MinSize, false)
	require.NoError(t, err, "what is there stays")
	assert.Equal(t, Made{Size: MinSize}, made)
}

// Growing takes three steps: the image, its loop device, the filesystem.
func TestMakeFinishesInterruptedGrowth(t *testing.T) {
	for name, interrupt := range map[string]func(t *testing.T, s Store, image *os.File){
		"after the image":       func(*testing.T, Store, *os.File) {},
		"after the loop device": func(t *testing.T, s Store, image *os.File) { require.NoError(t, s.updateLoop(image)) },
		"by a restart":          func(t *testing.T, s Store, _ *os.File) { require.NoError(t, unix.Unmount(s.Root, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Make(t.Context(), MinSize, false)
			require.NoError(t, err)
			image, err := os.OpenFile(s.Image, os.O_RDWR, 0)
			require.NoError(t, err)
			require.NoError(t, image.Truncate(2*MinSize))
			interrupt(t, s, image)
			require.NoError(t, image.Close())

			made, err := s.Make(t.Context(), 0, false)
			require.NoError(t, err)
			assert.True(t, made.Grown)
			assert.EqualValues(t, 2*MinSize, made.Size)
			var fs unix.Statfs_t
			require.NoError(t, unix.Statfs(s.Root, &fs))
			assert.EqualValues(t, 2*MinSize, fs.Blocks*uint64(fs.Bsize))
			made, err = s.Make(t.Context(), 0, false)
			require.NoError(t, err)
			assert.False(t, made.Grown)
		})
	}
}

// However many make a store at once, of whatever sizes, it has the largest, and is never made smaller.
func TestMakeAtOnce(t *testing.T) {
	s := newStore(t)
	const largest = 2 * MinSize
	var group sync.WaitGroup
	for i := range uint64(8) {
		group.Go(func() {
			made, err := s.Make(t.Context(), largest-i<<20, false)
			if assert.NoError(t, err) {
				assert.GreaterOrEqual(t, made.Size, largest-i<<20)
			}
		})
	}
	group.Wait()
	requireState(t, s, Mounted)
	info, err := os.Stat(s.Image)
	require.NoError(t, err)
	assert.EqualValues(t, largest, info.Size())
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(s.Root, &fs))
	assert.EqualValues(t, largest, fs.Blocks*uint64(fs.Bsize))
	entries, err := filepath.Glob(s.Image + "*")
	require.NoError(t, err)
	assert.Equal(t, []string{s.Image}, entries)
}

// The loop device outlives a process that is killed while it mounts. The lock must not.
func TestLockEndsWithItsHolder(t *testing.T) {
	s := newStore(t)
	_, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	require.NoError(t, unix.Unmount(s.Root, 0))
	held, err := s.openLocked(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.mount())
	require.NoError(t, held.Close(), "as when the process ends")

	other, err := os.Open(s.Image)
	require.NoError(t, err)
	defer other.Close()
	assert.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

// An image on a filesystem that is read-only can be mounted, and so read.
func TestMountReadOnly(t *testing.T) {
	s := newStoreOn(t, "64M")
	_, err := s.Make(t.Context(), MinSize, true)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(s.Root, "file"), []byte("kept"), 0o644))
	require.NoError(t, unix.Unmount(s.Root, 0))
	host := filepath.Dir(s.Image)
	require.NoError(t, unix.Mount("", host, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Mount("", host, "", unix.MS_REMOUNT, "")) })

	mounted, err := s.Mount(t.Context())
	require.NoError(t, err)
	assert.True(t, mounted)
	requireState(t, s, Mounted)
	data, err := os.ReadFile(filepath.Join(s.Root, "file"))
	require.NoError(t, err)
	assert.Equal(t, "kept", string(data))
	require.ErrorIs(t, os.WriteFile(filepath.Join(s.Root, "new"), nil, 0o644), unix.EROFS)
	_, err = s.Make(t.Context(), 2*MinSize, true)
	require.Error(t, err, "it cannot grow")
	require.NoError(t, unix.Unmount(s.Root, 0))
}
