package outfile

import (
	"context"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

func put(t *testing.T, path string, replace bool, text string) error {
	t.Helper()
	f, err := Create(t.Context(), path, replace)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	require.NoError(t, err)
	return f.Commit()
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRegular(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	require.NoError(t, Check(path, false))
	require.NoError(t, put(t, path, false, "one"))
	assert.Equal(t, "one", content(t, path))

	require.ErrorIs(t, Check(path, false), errdefs.ErrAlreadyExists)
	require.ErrorIs(t, put(t, path, false, "two"), errdefs.ErrAlreadyExists)
	assert.Equal(t, "one", content(t, path))
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, put(t, path, true, "two"))
	assert.Equal(t, "two", content(t, path))
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode(), "as it was")

	f, err := Create(t.Context(), path, true)
	require.NoError(t, err)
	require.NoError(t, f.Discard())
	assert.Equal(t, "two", content(t, path))

	f, err = Create(t.Context(), filepath.Join(dir, "new"), false)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), []byte("another's"), 0o600))
	require.ErrorIs(t, f.Commit(), errdefs.ErrAlreadyExists)
	assert.Equal(t, "another's", content(t, filepath.Join(dir, "new")))

	require.ErrorIs(t, Check(filepath.Join(dir, "no", "out"), false), fs.ErrNotExist)
	assert.Equal(t, []string{"new", "out"}, names(t, dir), "nothing is left over")
}

// TestLinks writes to the targets of symbolic links. The links stay.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Mkdir(in("sub"), 0o700))
	require.NoError(t, os.Symlink("sub/file", in("link")))
	require.NoError(t, os.Symlink(in("link"), in("chain")))
	require.NoError(t, os.Symlink("loop", in("loop")))
	require.NoError(t, put(t, in("chain"), false, "one"), "to nothing yet")
	assert.Equal(t, "one", content(t, in("sub/file")))
	require.ErrorIs(t, put(t, in("link"), false, "two"), errdefs.ErrAlreadyExists)
	require.NoError(t, put(t, in("link"), true, "two"))
	assert.Equal(t, "two", content(t, in("sub/file")))
	assert.Equal(t, []string{"chain", "link", "loop", "sub"}, names(t, dir))
	require.ErrorIs(t, Check(in("loop"), true), errdefs.ErrInvalidArgument)
	link, err := os.Readlink(in("link"))
	require.NoError(t, err)
	assert.Equal(t, "sub/file", link)
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Symlink("/dev/null", filepath.Join(dir, "null")))
	for _, path := range []string{dir, "/dev/null", filepath.Join(dir, "null"), "/dev/full", filepath.Join(dir, "socket")} {
		err := Check(path, true)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, path)
		assert.ErrorContains(t, err, path)
		_, err = Create(t.Context(), path, true)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, path)
	}
}

func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	require.NoError(t, Check(path, false))
	read := make(chan string, 1)
	go func() {
		time.Sleep(50 * time.Millisecond)
		f, err := os.Open(path)
		if !assert.NoError(t, err) {
			close(read)
			return
		}
		text, err := io.ReadAll(f)
		assert.NoError(t, err)
		assert.NoError(t, f.Close())
		read <- string(text)
	}()
	require.NoError(t, put(t, path, false, "text"))
	assert.Equal(t, "text", testfs.Receive(t, read))

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Create(ctx, path, false)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.ErrorContains(t, err, path)
}

func TestStdout(t *testing.T) {
	for _, path := range []string{"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"} {
		assert.True(t, Stdout(path))
	}
	assert.False(t, Stdout("stdout"))
}
