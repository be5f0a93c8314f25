package rootdir

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// hostile makes a directory "root" beside a file that nobody may read through it.
func hostile(t *testing.T) *Dir {
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "dir", "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(outside, "canary"), []byte("secret"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(root, "dir", "file"), []byte("text"), 0o644))
	require.NoError(t, os.Symlink("../canary", filepath.Join(root, "link")))
	require.NoError(t, os.Symlink("file", filepath.Join(root, "dir", "inside")))
	require.NoError(t, os.Symlink("..", filepath.Join(root, "up")))
	require.NoError(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o644))
	require.NoError(t, unix.Mknod(filepath.Join(root, "socket"), unix.S_IFSOCK|0o644, 0))
	d, err := Open(root)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Close()) })
	return d
}

func TestReads(t *testing.T) {
	d := hostile(t)
	data, err := d.ReadFile("dir/file", 4)
	require.NoError(t, err)
	assert.Equal(t, "text", string(data))

	names, err := d.List("dir", 3)
	require.NoError(t, err)
	assert.Equal(t, []string{"file", "inside", "sub"}, names)

	sub, err := d.Sub("dir")
	require.NoError(t, err)
	defer sub.Close()
	assert.Equal(t, d.Join("dir"), sub.Path())
	for name, want := range map[string]bool{"file": true, "sub": true, "none": false, "none/file": false} {
		exists, err := sub.Exists(name)
		require.NoError(t, err)
		assert.Equal(t, want, exists, name)
	}
	names, err = sub.List("sub", 0)
	require.NoError(t, err)
	assert.Empty(t, names)
}

func TestRefuses(t *testing.T) {
	d := hostile(t)
	for _, name := range []string{
		"../canary", "/etc/passwd", "..", "", "dir/../../canary", "dir\x00file", // out of the directory
		"link", "dir/inside", "up/canary", "up/root/dir/file", // symbolic links
		"dir/file/x", "fifo", "socket", "dir", // of another type
	} {
		_, err := d.ReadFile(name, 100)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", name)
	}
	for _, name := range []string{"..", "up", "up/root", "dir/file", "fifo"} {
		_, err := d.OpenDir(name)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", name)
		_, err = d.List(name, 10)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", name)
	}
	_, err := d.ReadFile("none", 100)
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, name := range []string{"fifo", "socket"} {
		exists, err := d.Exists(name)
		require.NoError(t, err)
		assert.False(t, exists, name)
	}
	_, err = d.Exists("link")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

// TestOpensNoDevice: the kernel does not even notify of an open of a pipe or of a device.
func TestOpensNoDevice(t *testing.T) {
	testfs.Root(t)
	d := hostile(t)
	require.NoError(t, unix.Mknod(d.Join("device"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3)))) // that of /dev/null
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(watch)
	for _, name := range []string{"device", "fifo", "socket", "dir/file"} {
		_, err := unix.InotifyAddWatch(watch, d.Join(name), unix.IN_OPEN)
		require.NoError(t, err)
	}
	for _, name := range []string{"device", "fifo", "socket"} {
		_, err = d.OpenFile(name)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
		_, err = d.OpenDir(name)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
		exists, err := d.Exists(name)
		require.NoError(t, err)
		assert.False(t, exists, name)
	}
	events := make([]byte, 4096)
	_, err = unix.Read(watch, events)
	require.ErrorIs(t, err, unix.EAGAIN, "something was opened")
	file, err := d.OpenFile("dir/file")
	require.NoError(t, err)
	require.NoError(t, file.Close())
	_, err = unix.Read(watch, events)
	require.NoError(t, err, "the watch works")
}

func TestBounds(t *testing.T) {
	d := hostile(t)
	_, err := d.ReadFile("dir/file", 3)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	for i := range listAtOnce + 1 {
		require.NoError(t, os.WriteFile(d.Join("dir/sub", strconv.Itoa(i)), nil, 0o644))
	}
	_, err = d.List("dir/sub", listAtOnce)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	names, err := d.List("dir/sub", listAtOnce+1)
	require.NoError(t, err)
	assert.Len(t, names, listAtOnce+1)
}
