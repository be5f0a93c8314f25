package zfs

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// logged is a log that a test reads.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestRecoveryBesideKilled: a process was killed, and its last call is still in the kernel when another opens the home. The
// remains go as soon as that call has ended. Everything in use stays.
func TestRecoveryBesideKilled(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	ctx := t.Context()
	home := filepath.Join(mountpoint, "home")
	killed, err := Open(ctx, home, root, Options{})
	require.NoError(t, err)
	for _, name := range []string{"base", "used", "source"} {
		require.NoError(t, killed.Create(ctx, name, cowcommon.VolumeOptions{}))
	}
	k := killed.zfs.kernel
	leave := func(suffix string) {
		require.NoError(t, k.Create(killed.datasetOf(stagingPrefix+suffix), properties(quota.Limit{})))
		require.NoError(t, killed.intend(ctx, "half-"+suffix, ""))
		require.NoError(t, k.Create(killed.datasetOf("half-"+suffix), unmarked))
		view := "base@" + viewPrefix + suffix
		require.NoError(t, os.WriteFile(filepath.Join(killed.locks, view), nil, 0o600))
		require.NoError(t, k.Snapshot(killed.datasetOf(view)))
		require.NoError(t, k.Snapshot(killed.datasetOf("source@"+clonePrefix+suffix)))
	}
	leave("before")
	require.NoError(t, os.Mkdir(killed.mountpoint("base"), 0o700))
	require.NoError(t, k.Mount(killed.datasetOf("base"), killed.mountpoint("base"), 0, ""))

	var log logged
	b, err := Open(ctx, home, root, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Close()) }()
	assert.Contains(t, log.String(), "last call has not ended")
	leave("after") // by the call that is in the kernel
	scratch, err := b.Scratch(ctx, func(dir string) error { return os.WriteFile(dir+"/own", nil, 0o600) })
	require.NoError(t, err)
	dir, err := b.Mount(ctx, "used", "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/own", nil, 0o600))
	view, err := b.View(ctx, "used")
	require.NoError(t, err)
	require.NoError(t, b.Clone(ctx, "clone", "used", cowcommon.VolumeOptions{}))
	time.Sleep(3 * time.Second)
	list := func() string { return zfs(t, "list", "-Hr", "-t", "all", "-o", "name", root) }
	for _, left := range []string{stagingPrefix + "before", stagingPrefix + "after", "half-before", viewPrefix + "before", clonePrefix + "before"} {
		assert.Contains(t, list(), left, "the other may be alive")
	}

	require.NoError(t, killed.closeFiles())
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "cleaned up possible remains") }, testfs.Patience, 100*time.Millisecond, &log)
	after := list()
	for _, gone := range []string{"before", "after"} {
		assert.NotContains(t, after, gone)
	}
	assert.NoDirExists(t, b.mountpoint("base"))
	intents, err := os.ReadDir(b.intents)
	require.NoError(t, err)
	assert.Empty(t, intents)
	for _, dir := range []string{dir, view.Dir(), scratch.Dir()} {
		assert.FileExists(t, dir+"/own")
	}
	assert.Equal(t, 2, strings.Count(after, clonePrefix)+strings.Count(after, viewPrefix), "of the clone and the view")
	require.NoError(t, scratch.Close())
	require.NoError(t, view.Close())
	require.NoError(t, b.Unmount(ctx, "used"))
	for _, name := range []string{"clone", "used", "base", "source"} {
		require.NoError(t, b.Remove(ctx, name))
	}
	assert.Equal(t, root+"\n", list())
	assert.NotContains(t, log.String(), "WARN")
}

// TestCloseBesideLivingProcess: waiting for others to go ends with Close.
func TestCloseBesideLivingProcess(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	first, second := openOn(t, root, mountpoint), openOn(t, root, mountpoint)
	alone, err := second.presence.IsAlone()
	require.NoError(t, err)
	assert.False(t, alone)
	second.zfs.patience = time.Hour // for others to go, without Close
	require.NoError(t, inTime(t, "close", second.Close))
	alone, err = first.presence.IsAlone()
	require.NoError(t, err)
	assert.True(t, alone)
}

// awaitLeave waits until a closed Backend whose last call has not ended has left its home.
func awaitLeave(t *testing.T, b *Backend) {
	t.Helper()
	lock, err := os.OpenFile(homedir.LockFile(b.home), os.O_RDWR, 0)
	require.NoError(t, err)
	defer lock.Close()
	require.Eventually(t, func() bool {
		free, err := flock.TryExclusive(lock)
		return free && err == nil
	}, testfs.Patience, 10*time.Millisecond)
	require.NoError(t, flock.Unlock(lock))
}

// TestCloseWhileCallIsLeft: Close does not wait for a call that was left to itself. The home stays locked until its
// outcome is settled, and then everything is free.
func TestCloseWhileCallIsLeft(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	ctx := t.Context()
	b, err := Open(ctx, filepath.Join(mountpoint, "home"), root, Options{})
	require.NoError(t, err)
	faults := &faultyKernel{kernel: b.zfs.kernel}
	b.zfs.kernel, b.zfs.patience = faults, 50*time.Millisecond
	defer faults.release()
	hit := faults.arm("create", "stuck-before")
	err = b.Create(cancelledAt(t, hit), "new", cowcommon.VolumeOptions{})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.NoError(t, inTime(t, "close", b.Close))
	assert.True(t, faults.stuck.Load(), "the call has not ended")

	lock, err := os.OpenFile(homedir.LockFile(b.home), os.O_RDWR, 0)
	require.NoError(t, err)
	defer lock.Close()
	free, err := flock.TryExclusive(lock)
	require.NoError(t, err)
	assert.False(t, free, "as that of a process that was killed")
	_, free, err = b.tryLockVolume("new")
	require.NoError(t, err)
	assert.False(t, free)

	faults.release()
	awaitLeave(t, b)
	assert.NotContains(t, zfs(t, "list", "-Hr", "-o", "name", root), "new", "it was undone")
	intents, err := os.ReadDir(b.intents)
	require.NoError(t, err)
	assert.Empty(t, intents)
	_, err = b.zfs.exists(ctx, root)
	require.ErrorIs(t, err, os.ErrClosed)
	again := openOn(t, root, mountpoint)
	assert.True(t, again.recovered)
	require.NoError(t, again.Create(ctx, "new", cowcommon.VolumeOptions{}))
	require.NoError(t, again.Remove(ctx, "new"))
}
