package loopstore

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/testfs"
)

// newStore returns a store that is not there yet. Whatever is made of it goes with the test.
func newStore(t *testing.T) Store {
	t.Helper()
	testfs.Root(t)
	if _, err := admintool.Look("mkfs.btrfs"); err != nil {
		testfs.Skip(t, "%v", err)
	}
	s, err := At(filepath.Join(t.TempDir(), "store"))
	require.NoError(t, err)
	t.Cleanup(func() {
		if state, err := s.State(); err == nil && state != Absent {
			assert.NoError(t, s.Remove(context.Background()))
		}
	})
	return s
}

func TestMakeMountRemove(t *testing.T) {
	s := newStore(t)
	made, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	assert.Equal(t, Made{Image: true, Mount: true, Size: MinSize}, made)
	requireState(t, s, Mounted)

	file := filepath.Join(s.Root, "file")
	require.NoError(t, os.WriteFile(file, []byte("kept"), 0o644))
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(s.Root, &fs))
	assert.EqualValues(t, unix.BTRFS_SUPER_MAGIC, fs.Type)

	again, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err, "making it again")
	assert.Equal(t, Made{Size: MinSize}, again, "does nothing")

	require.NoError(t, unix.Unmount(s.Root, 0), "as after a start of the machine")
	requireState(t, s, Detached)
	mounted, err := s.Mount(t.Context())
	require.NoError(t, err)
	assert.True(t, mounted)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "kept", string(data))
	mounted, err = s.Mount(t.Context())
	require.NoError(t, err)
	assert.False(t, mounted, "it is mounted")

	require.NoError(t, s.Remove(t.Context()))
	assert.NoFileExists(t, s.Image)
	assert.NoDirExists(t, s.Root)
	requireState(t, s, Absent)
}

func requireState(t *testing.T, s Store, want State) {
	t.Helper()
	got, err := s.State()
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestMakeGrows(t *testing.T) {
	s := newStore(t)
	_, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	made, err := s.Make(t.Context(), 2*MinSize, false)
	require.NoError(t, err)
	assert.Equal(t, Made{Grown: true, Size: 2 * MinSize}, made)
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(s.Root, &fs))
	assert.EqualValues(t, 2*MinSize, fs.Blocks*uint64(fs.Bsize))

	made, err = s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	assert.Equal(t, Made{Size: 2 * MinSize}, made, "it is never made smaller")
}

func TestMakeTooSmall(t *testing.T) {
	s := newStore(t)
	_, err := s.Make(t.Context(), MinSize-1, false)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.NoFileExists(t, s.Image)
	assert.NoDirExists(t, s.Root)
}

func TestMakeDoesNotHideFiles(t *testing.T) {
	s := newStore(t)
	require.NoError(t, os.Mkdir(s.Root, 0o755))
	file := filepath.Join(s.Root, "precious")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err := s.Make(t.Context(), MinSize, false)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.FileExists(t, file)
	assert.NoFileExists(t, s.Image)
}

func TestMakeStopped(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Make(ctx, MinSize, false)
	require.ErrorIs(t, err, context.Canceled)
	entries, err := os.ReadDir(filepath.Dir(s.Root))
	require.NoError(t, err)
	assert.Empty(t, entries, "nothing is left")
}

func TestMakeRemovesWhatACrashLeft(t *testing.T) {
	s := newStore(t)
	stale := s.Image + partialMark + "123"
	require.NoError(t, os.WriteFile(stale, nil, 0o600))
	kept := s.Image + ".partial"
	require.NoError(t, os.WriteFile(kept, nil, 0o600))
	_, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	assert.NoFileExists(t, stale)
	assert.FileExists(t, kept, "not one of ours")
}

// A file that this package did not make is neither mounted nor deleted nor written to.
func TestForeignImages(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, path string){
		"text":      func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, []byte("text"), 0o644)) },
		"empty":     func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, nil, 0o644)) },
		"directory": func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o755)) },
		"fifo":      func(t *testing.T, path string) { require.NoError(t, unix.Mkfifo(path, 0o644)) },
		"other btrfs": func(t *testing.T, path string) {
			f, err := os.Create(path)
			require.NoError(t, err)
			require.NoError(t, f.Truncate(MinSize))
			require.NoError(t, f.Close())
			mkfs, err := admintool.Look("mkfs.btrfs")
			require.NoError(t, err)
			require.NoError(t, exec.Command(mkfs, "-q", "-L", "mine", path).Run())
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			make(t, s.Image)
			before, err := os.Lstat(s.Image)
			require.NoError(t, err)

			_, err = s.State()
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			_, err = s.Make(t.Context(), MinSize, false)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			_, err = s.Mount(t.Context())
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrFailedPrecondition)

			after, err := os.Lstat(s.Image)
			require.NoError(t, err)
			assert.Equal(t, before.ModTime(), after.ModTime())
			assert.Equal(t, before.Size(), after.Size())
		})
	}
	t.Run("symbolic link", func(t *testing.T) {
		s := newStore(t)
		target := filepath.Join(t.TempDir(), "target")
		require.NoError(t, os.WriteFile(target, []byte("text"), 0o644))
		require.NoError(t, os.Symlink(target, s.Image))
		_, err := s.Make(t.Context(), MinSize, false)
		require.Error(t, err)
		require.Error(t, s.Remove(t.Context()))
		assert.FileExists(t, target)
	})
}

func TestRemoveInUse(t *testing.T) {
	s := newStore(t)
	_, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)

	t.Run("a file is open", func(t *testing.T) {
		f, err := os.Create(filepath.Join(s.Root, "file"))
		require.NoError(t, err)
		defer f.Close()
		require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrFailedPrecondition)
		requireState(t, s, Mounted)
	})
	t.Run("mounted elsewhere too", func(t *testing.T) {
		elsewhere := t.TempDir()
		require.NoError(t, unix.Mount(s.Root, elsewhere, "", unix.MS_BIND, ""))
		defer func() { assert.NoError(t, unix.Unmount(elsewhere, 0)) }()
		require.ErrorIs(t, s.Remove(t.Context()), errdefs.ErrFailedPrecondition)
		requireState(t, s, Mounted)
	})
}

// TestRemoveInUseElsewhere: a store that somebody has mounted is not removed, although this mount namespace does not show it.
func TestRemoveInUseElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		use   func(t *testing.T, s Store)
		names string
		state State
	}{
		"covered": {
			func(t *testing.T, s Store) { mountUntilEnd(t, "tmpfs", s.Root, "tmpfs", 0, "") },
			" is mounted on ", Detached,
		},
		"in another mount namespace alone": {
			func(t *testing.T, s Store) {
				testfs.InNamespace(t, "private", "")
				require.NoError(t, unix.Unmount(s.Root, 0))
			},
			"in the mount namespace of process ", Detached,
		},
		"bound in another mount namespace": {
			func(t *testing.T, s Store) {
				testfs.InNamespace(t, "private", `mount --bind "$0" "$1"; umount "$0"`, s.Root, t.TempDir())
			},
			"in the mount namespace of process ", Mounted,
		},
		"layer of an overlay": {
			func(t *testing.T, s Store) {
				mountUntilEnd(t, "overlay", t.TempDir(), "overlay", 0, "lowerdir="+s.Root+":"+t.TempDir())
			},
			"an overlay", Mounted,
		},
		"layer of an overlay on a directory with files": {
			func(t *testing.T, s Store) {
				mountUntilEnd(t, "overlay", t.TempDir(), "overlay", 0, "lowerdir="+s.Root+":"+t.TempDir())
				parent := t.TempDir()
				mountUntilEnd(t, filepath.Dir(s.Root), parent, "", unix.MS_BIND, "")
				below := filepath.Join(parent, filepath.Base(s.Root), "made meanwhile")
				require.NoError(t, os.WriteFile(below, nil, 0o600))
				t.Cleanup(func() { assert.NoError(t, os.Remove(below)) })
			},
			"an overlay", Mounted,
		},
		"attached by another path": {
			func(t *testing.T, s Store) {
				require.NoError(t, unix.Unmount(s.Root, 0))
				other := t.TempDir()
				mountUntilEnd(t, filepath.Dir(s.Image), other, "", unix.MS_BIND, "")
				at := t.TempDir()
				require.NoError(t, testfs.Run(t, exec.Command("mount", "-o", "loop", filepath.Join(other, filepath.Base(s.Image)), at)))
				t.Cleanup(func() { assert.NoError(t, unix.Unmount(at, 0)) })
			},
			" is mounted on ", Detached,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Make(t.Context(), MinSize, false)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(s.Root, "file"), []byte("kept"), 0o644))
			t.Run("used", func(t *testing.T) {
				c.use(t, s)
				err := s.Remove(t.Context())
				require.ErrorIs(t, err, fault.ErrInUse)
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
				require.ErrorContains(t, err, c.names)
				assert.FileExists(t, s.Image)
				requireState(t, s, c.state)
			})
			_, err = s.Mount(t.Context())
			require.NoError(t, err)
			data, err := os.ReadFile(filepath.Join(s.Root, "file"))
			require.NoError(t, err)
			assert.Equal(t, "kept", string(data))
		})
	}
}

// TestRemoveSpread: mounts that have spread from the store's to other mount namespaces, as on a host with systemd, go with it.
func TestRemoveSpread(t *testing.T) {
	testfs.Root(t)
	host := t.TempDir()
	mountUntilEnd(t, "host", host, "tmpfs", 0, "")
	require.NoError(t, unix.Mount("", host, "", unix.MS_SHARED, ""))
	newStore(t) // ends the test where stores cannot be made
	s, err := At(filepath.Join(host, "store"))
	require.NoError(t, err)
	_, err = s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	testfs.InNamespace(t, "slave", "")
	require.NoError(t, s.Remove(t.Context()))
	assert.NoFileExists(t, s.Image)
}

func mountUntilEnd(t *testing.T, source, at, fsType string, flags uintptr, data string) {
	t.Helper()
	require.NoError(t, unix.Mount(source, at, fsType, flags, data))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(at, unix.MNT_DETACH)) })
}

func TestMountIsDoneOnce(t *testing.T) {
	s := newStore(t)
	_, err := s.Make(t.Context(), MinSize, false)
	require.NoError(t, err)
	require.NoError(t, unix.Unmount(s.Root, 0))

	mounted := make([]bool, 4)
	var group sync.WaitGroup
	for i := range mounted {
		group.Go(func() {
			var err error
			mounted[i], err = s.Mount(t.Context())
			assert.NoError(t, err)
		})
	}
	group.Wait()
	times := 0
	for _, m := range mounted {
		if m {
			times++
		}
	}
	assert.Equal(t, 1, times)
}

func TestMountNothing(t *testing.T) {
	s := newStore(t)
	_, err := s.Mount(t.Context())
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, s.Remove(t.Context()), fs.ErrNotExist)
}
