package detect

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestBtrfs(t *testing.T) {
	dir := testfs.Btrfs(t)
	require.NoError(t, Btrfs(dir))
	require.NoError(t, Btrfs(filepath.Join(dir, "not/made/yet")))
}

func TestBtrfsElsewhere(t *testing.T) {
	dir := mount(t, "tmpfs", "tmpfs", 0, "")
	err := Btrfs(filepath.Join(dir, "root"))
	require.ErrorIs(t, err, graphdriver.ErrPrerequisites)
	assert.ErrorContains(t, err, "root is on tmpfs (tmpfs, mounted on "+resolved(t, dir)+"), not on btrfs")
	assert.ErrorContains(t, err, "cowshed init --loop")

	_, err = os.Stat(filepath.Join(dir, "root"))
	require.ErrorIs(t, err, os.ErrNotExist, "looking makes nothing")
}

func TestBtrfsReadOnly(t *testing.T) {
	dir := testfs.Btrfs(t)
	sub := filepath.Join(dir, "sub")
	root, err := os.Open(dir)
	require.NoError(t, err)
	defer root.Close()
	require.NoError(t, btrfsctl.CreateSubvolume(int(root.Fd()), "sub", nil))
	require.NoError(t, os.Mkdir(filepath.Join(sub, "home"), 0o755))
	subvolume, err := os.Open(sub)
	require.NoError(t, err)
	defer subvolume.Close()
	require.NoError(t, btrfsctl.SetReadOnly(int(subvolume.Fd()), true))

	err = Btrfs(filepath.Join(sub, "home/absent"))
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	require.ErrorIs(t, err, unix.EROFS)
	assert.ErrorContains(t, err, filepath.Join(sub, "home")+" is read-only: it is in a read-only subvolume")

	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	err = Btrfs(dir)
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	require.ErrorIs(t, err, unix.EROFS)
	assert.ErrorContains(t, err, "mounted read-only")
	assert.ErrorContains(t, err, "mount -o remount,rw "+resolved(t, dir))
}

func TestInitialPIDNamespace(t *testing.T) {
	attr := syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if _, parent := inChild(t, attr, t.TempDir); parent {
		return
	}
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("proc", "/proc", "proc", 0, ""))
	initial, err := InitialPIDNamespace()
	require.NoError(t, err)
	assert.False(t, initial)
}

func TestBtrfsUserNamespace(t *testing.T) {
	dir, parent := inChild(t, nestedUserNamespace, func() string { return testfs.Btrfs(t) })
	if parent {
		return
	}
	initial, err := InitialUserNamespace()
	require.NoError(t, err)
	assert.False(t, initial)
	capable, err := Capable(unix.CAP_SYS_ADMIN)
	require.NoError(t, err)
	assert.True(t, capable, "of its own namespace")

	err = Btrfs(dir)
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	assert.ErrorContains(t, err, "nested user namespace")
}

func TestBtrfsUnprivileged(t *testing.T) {
	dir, parent := inChild(t, syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, func() string {
		// The way to the test's directory is closed to others.
		dir := testfs.Btrfs(t)
		public, err := os.MkdirTemp("/tmp", "cowshed-detect-")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.Remove(public)) })
		require.NoError(t, os.Chmod(public, 0o755))
		mountOn(t, public, dir, "", unix.MS_BIND, "")
		require.NoError(t, os.Mkdir(filepath.Join(dir, "closed"), 0o700))
		return public
	})
	if parent {
		return
	}
	initial, err := InitialUserNamespace()
	require.NoError(t, err)
	assert.True(t, initial)
	capable, err := Capable(unix.CAP_SYS_ADMIN)
	require.NoError(t, err)
	assert.False(t, capable)

	err = Btrfs(dir)
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	assert.ErrorContains(t, err, "lacks CAP_SYS_ADMIN")
	err = Btrfs(filepath.Join(dir, "closed"))
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	require.ErrorIs(t, err, os.ErrPermission)
}

func TestKnowsFilesystem(t *testing.T) {
	const known = "nodev\tsysfs\nnodev\ttmpfs\n\text4\n\tbtrfs\nnodev\tzfs\n"
	for name, want := range map[string]bool{"btrfs": true, "zfs": true, "ext4": true, "xfs": false, "nodev": false, "": false, "ext": false} {
		assert.Equal(t, want, knowsFilesystem([]byte(known), name), name)
	}
	assert.Empty(t, missingFilesystem("proc"))
	assert.Contains(t, missingFilesystem("nosuchfs"), "modprobe nosuchfs")
}
