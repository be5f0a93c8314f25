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
	"github.com/cowshed/cowshed/internal/overlaysource"
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
	testfs.Free(t, func() error { return Mounts(root, names) })
}

// TestMountsOfCowshed: an overlay of Cowshed uses no directory of the root, although its layers' paths end like one of them.
// The same overlay of another program may be in use here: its paths are perhaps those of another mount namespace.
func TestMountsOfCowshed(t *testing.T) {
	testfs.Root(t)
	dir, home, at := t.TempDir(), t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "subvolumes/base"), 0o755))
	for _, layer := range []string{"subvolumes/base", "subvolumes/web"} {
		require.NoError(t, os.MkdirAll(filepath.Join(home, layer), 0o755))
	}
	root, err := rootdir.Open(dir)
	require.NoError(t, err)
	defer root.Close()
	ofCowshed := overlaysource.Source{Upper: 1, Lower: 2, Name: "web"}.String()
	for source, want := range map[string]error{ofCowshed: nil, "overlay": fault.ErrInUse} {
		require.NoError(t, unix.Mount(source, at, "overlay", 0, "lowerdir="+home+"/subvolumes/web:"+home+"/subvolumes/base"))
		err := Mounts(root, []string{"subvolumes/base"})
		require.NoError(t, unix.Unmount(at, 0))
		require.ErrorIs(t, err, want, source)
	}
}

func TestLocks(t *testing.T) {
	root, err := rootdir.Open(t.TempDir())
	require.NoError(t, err)
	defer root.Close()
	var locks Locks
	all := func() (errs []error) {
		return []error{Locked(root, "lock"), locks.Lock(root, "lock"), locks.Flock(root, "bolt")}
	}
	for _, err := range all() {
		require.NoError(t, err, "it is missing")
	}
	lock, err := os.Create(root.Join("lock"))
	require.NoError(t, err)
	defer lock.Close()
	bolt, err := os.Create(root.Join("bolt"))
	require.NoError(t, err)
	defer bolt.Close()
	fcntl := func(kind int16) error {
		return unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind})
	}

	require.NoError(t, fcntl(unix.F_WRLCK))
	require.NoError(t, unix.Flock(int(bolt.Fd()), unix.LOCK_EX))
	for _, err := range all() {
		require.ErrorIs(t, err, fault.ErrInUse)
	}
	assert.ErrorContains(t, locks.Flock(root, "bolt"), filepath.Base(os.Args[0]), "it names the process")
	require.NoError(t, fcntl(unix.F_RDLCK))
	require.ErrorIs(t, locks.Lock(root, "lock"), fault.ErrInUse, "by a reader")

	// Once they are held, nobody else gets the locks of a writer.
	require.NoError(t, fcntl(unix.F_UNLCK))
	require.NoError(t, unix.Flock(int(bolt.Fd()), unix.LOCK_UN))
	for range 2 {
		require.NoError(t, locks.Lock(root, "lock"))
		require.NoError(t, locks.Flock(root, "bolt"))
		require.ErrorIs(t, fcntl(unix.F_WRLCK), unix.EAGAIN)
		require.ErrorIs(t, unix.Flock(int(bolt.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	}
	require.NoError(t, locks.Release())
	require.NoError(t, fcntl(unix.F_WRLCK))
	require.NoError(t, unix.Flock(int(bolt.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

// TestMountsElsewhere: a directory of the root may be a mount point, with the layers on another filesystem.
func TestMountsElsewhere(t *testing.T) {
	testfs.Root(t)
	root, err := rootdir.Open(t.TempDir())
	require.NoError(t, err)
	defer root.Close()
	require.NoError(t, os.Mkdir(root.Join("layers"), 0o755))
	require.NoError(t, unix.Mount("tmpfs", root.Join("layers"), "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(root.Join("layers"), unix.MNT_DETACH) })
	require.NoError(t, os.MkdirAll(root.Join("layers/a"), 0o755))
	require.NoError(t, Mounts(root, []string{"layers/a"}))
	outside := t.TempDir()
	require.NoError(t, unix.Mount(root.Join("layers/a"), outside, "", unix.MS_BIND, ""))
	require.ErrorIs(t, Mounts(root, []string{"layers/a"}), fault.ErrInUse)
	require.NoError(t, unix.Unmount(outside, 0))
	testfs.Free(t, func() error { return Mounts(root, []string{"layers/a"}) })
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
