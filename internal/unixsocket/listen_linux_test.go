package unixsocket

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestListen(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := filepath.Join(t.TempDir(), "docker", "plugins")
	path := filepath.Join(dir, "p.sock")
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	l, err := Listen(t.Context(), path)
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.ModeSocket|0o600, info.Mode(), "only the owner gets in")
	assert.Equal(t, path, l.Addr().String())
	assert.Equal(t, []string{"p.sock"}, names(t, dir), "nothing else is left")

	go func() {
		conn, err := l.Accept()
		if err == nil {
			_ = conn.Close()
		}
	}()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	assert.Empty(t, names(t, dir))
}

func TestListenFor(t *testing.T) {
	testfs.CheckLeaks(t)
	testfs.Root(t)
	path := filepath.Join(t.TempDir(), "p.sock")
	l, err := ListenFor(t.Context(), path, 12345)
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.ModeSocket|0o660, info.Mode(), "the owner and the group get in")
	stat, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	assert.Equal(t, []uint32{0, 12345}, []uint32{stat.Uid, stat.Gid})
	require.NoError(t, l.Close())
}

// stale leaves a socket behind as a process that is killed does.
func stale(t testing.TB, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func TestListenWhereSomethingIs(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "p.sock")
	stale(t, path)
	l, err := Listen(t.Context(), path)
	require.NoError(t, err, "the socket of a dead process is replaced")
	_, err = Listen(t.Context(), path)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists, "that of a living one is not")
	require.NoError(t, l.Close())

	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("mine"), 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink("nowhere", path) },
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, make(path))
		before, err := os.Lstat(path)
		require.NoError(t, err)
		_, err = Listen(t.Context(), path)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		after, err := os.Lstat(path)
		require.NoError(t, err)
		assert.True(t, os.SameFile(before, after), name)
	}
	assert.Equal(t, []string{"directory", "file", "link"}, names(t, dir))
}

// TestCloseLeavesOthersSocket: a listener removes only its own socket.
func TestCloseLeavesOthersSocket(t *testing.T) {
	testfs.CheckLeaks(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "p.sock")
	l, err := Listen(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	other, err := Listen(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	assert.Equal(t, []string{"p.sock"}, names(t, dir))
	require.NoError(t, other.Close())

	l, err = Listen(t.Context(), path)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, l.Close(), "it is gone already")
}

// TestListenAtOnce: of several that start at once, over the socket of a dead process, one listens.
func TestListenAtOnce(t *testing.T) {
	testfs.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), "p.sock")
	for range 20 {
		stale(t, path)
		var wg sync.WaitGroup
		var listening atomic.Int32
		listeners := make([]net.Listener, 8)
		for i := range listeners {
			wg.Go(func() {
				l, err := Listen(t.Context(), path)
				if err == nil {
					listening.Add(1)
					listeners[i] = l
					return
				}
				assert.ErrorIs(t, err, errdefs.ErrAlreadyExists)
			})
		}
		wg.Wait()
		assert.Equal(t, int32(1), listening.Load())
		for _, l := range listeners {
			if l != nil {
				require.NoError(t, l.Close())
			}
		}
	}
}
