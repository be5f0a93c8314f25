package flock

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func assertTry(t *testing.T, want bool, try func(*os.File) (bool, error), f *os.File) {
	t.Helper()
	ok, err := try(f)
	require.NoError(t, err)
	assert.Equal(t, want, ok)
}

func TestTry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	one, other := open(t, path), open(t, path)
	assertTry(t, true, TryShared, one)
	assertTry(t, true, TryShared, other)
	assertTry(t, false, TryExclusive, one)
	require.NoError(t, Unlock(other))
	assertTry(t, true, TryExclusive, one)
	assertTry(t, false, TryShared, other)
	assertTry(t, false, TryExclusive, other)
}

// TestWaits: a goroutine that waits for a lock gets it when it is given up, and not before.
func TestWaits(t *testing.T) {
	for name, lock := range map[string]func(context.Context, *os.File) error{"shared": Shared, "exclusive": Exclusive} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			one, other := open(t, path), open(t, path)
			require.NoError(t, Exclusive(t.Context(), one))
			got := make(chan error, 1)
			go func() { got <- lock(t.Context(), other) }()
			select {
			case err := <-got:
				t.Fatalf("locked beside an exclusive lock: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			require.NoError(t, Unlock(one))
			assert.NoError(t, testfs.Receive(t, got))
		})
	}
}

// TestWaitEnds has the wait for a lock end with its context, and others get the lock afterwards.
func TestWaitEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	one, other := open(t, path), open(t, path)
	require.NoError(t, Exclusive(t.Context(), one))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	for _, lock := range []func(context.Context, *os.File) error{Shared, Exclusive} {
		require.ErrorIs(t, lock(ctx, other), context.DeadlineExceeded)
	}
	require.NoError(t, Unlock(one))
	assertTry(t, true, TryExclusive, one)
}

// TestReleaseBesideFork releases a lock while the open file lives on elsewhere. It does so in a forked child that has
// not executed its program yet.
func TestReleaseBesideFork(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	one, other := open(t, path), open(t, path)
	require.NoError(t, Exclusive(t.Context(), one))
	forked, err := unix.Dup(int(one.Fd()))
	require.NoError(t, err)
	defer unix.Close(forked)
	require.NoError(t, Release(one))
	assertTry(t, true, TryExclusive, other)
}

func TestErrors(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "file"))
	require.NoError(t, f.Close())
	for _, err := range []error{Shared(t.Context(), f), Exclusive(t.Context(), f), Unlock(f)} {
		assert.ErrorIs(t, err, unix.EBADF)
		assert.ErrorContains(t, err, f.Name())
	}
	require.ErrorIs(t, Release(f), os.ErrClosed)
	for _, try := range []func(*os.File) (bool, error){TryShared, TryExclusive} {
		ok, err := try(f)
		assert.False(t, ok)
		assert.ErrorIs(t, err, unix.EBADF)
	}
}
