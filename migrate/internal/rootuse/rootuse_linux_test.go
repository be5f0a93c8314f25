package rootuse

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// TestMounts: mounts of a named directory count, wherever they are, and mounts of the root itself do not.
func TestMounts(t *testing.T) {
	testfs.Root(t)
	mnt := testfs.Btrfs(t) // the root is the top of a filesystem, which is mounted
	for _, dir := range []string{"layers/a/b", "layers/b", "elsewhere"} {
		require.NoError(t, os.MkdirAll(filepath.Join(mnt, dir), 0o755))
	}
	root, err := rootdir.Open(mnt)
	require.NoError(t, err)
	defer root.Close()
	names := []string{"layers/a", "none"}
	require.NoError(t, Mounts(root, names))

	mount := func(source, at, kind string, flags uintptr) {
		require.NoError(t, unix.Mount(source, at, kind, flags, ""))
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	outside := t.TempDir()
	mount(root.Join("layers/b"), outside, "", unix.MS_BIND)
	require.NoError(t, Mounts(root, names), "another directory")
	require.ErrorIs(t, Mounts(root, []string{"layers/b"}), fault.ErrInUse)
	require.ErrorIs(t, Mounts(root, []string{"layers"}), fault.ErrInUse)
	require.NoError(t, unix.Unmount(outside, 0))

	mount("tmpfs", root.Join("layers/a/b"), "tmpfs", 0)
	require.ErrorIs(t, Mounts(root, names), fault.ErrInUse)
	require.NoError(t, unix.Unmount(root.Join("layers/a/b"), 0))
	require.NoError(t, Mounts(root, names))
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder, err := os.Create(path)
	require.NoError(t, err)
	defer holder.Close()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, Locked(file))
	require.NoError(t, unix.FcntlFlock(holder.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	require.ErrorIs(t, Locked(file), fault.ErrInUse)
	require.NoError(t, unix.FcntlFlock(holder.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	require.NoError(t, Locked(file))
}

func TestProcess(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	name := strings.TrimSpace(string(comm))
	own := func(argument string) bool { return argument == os.Args[0] }
	require.ErrorIs(t, Process(name, own), fault.ErrInUse)
	assert.NoError(t, Process(name, func(string) bool { return false }))
	assert.NoError(t, Process("no-such-program", own))
}
