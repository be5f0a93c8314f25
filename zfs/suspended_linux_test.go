package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// TestPoolSuspended: nothing hangs on a pool whose device fails, and every error says what to do. When the device is
// back, everything works again. The home is elsewhere, or in the pool itself.
func TestPoolSuspended(t *testing.T) {
	t.Run("home elsewhere", func(t *testing.T) { poolSuspended(t, false) })
	t.Run("home in the pool", func(t *testing.T) { poolSuspended(t, true) })
}

func poolSuspended(t *testing.T, homeInPool bool) {
	pool, dir := ownPool(t, 96<<20)
	home := t.TempDir() + "/home"
	if homeInPool {
		at := t.TempDir()
		zfs(t, "create", "-o", "mountpoint="+at, pool+"/homes")
		home = at + "/home"
	}
	zfs(t, "create", pool+"/root")
	openHere := func() *Backend {
		b, err := Open(t.Context(), home, pool+"/root", Options{})
		require.NoError(t, err)
		return b
	}
	b := openHere()
	defer func() { assert.NoError(t, b.Close()) }()
	resume := sync.OnceFunc(func() {
		assert.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 512<<20)))
		run(t, "zpool", "clear", pool)
	})
	defer resume()
	closing := openHere()
	ctx := t.Context()
	for _, name := range []string{"base", "other", "third", "fourth"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
	}
	at, err := b.Mount(ctx, "base", "")
	require.NoError(t, err)
	require.NoError(t, second(b.Mount(ctx, "other", "")))
	view, err := b.View(ctx, "other")
	require.NoError(t, err)
	require.NoError(t, second(closing.Mount(ctx, "third", "")))
	require.NoError(t, second(closing.View(ctx, "third")))
	late := openHere()
	require.NoError(t, second(late.Mount(ctx, "fourth", "")))
	lateView, err := late.View(ctx, "fourth")
	require.NoError(t, err)
	idle := late.pendingNow()
	written := make(chan error, 1)
	go func() { // hangs until the pool is back
		written <- errors.Join(os.WriteFile(at+"/f", randomBytes(100<<20), 0o644), syncFilesystem(at))
	}()
	require.Eventually(t, func() bool { return b.zfs.checkPool() != nil }, testfs.Patience, 50*time.Millisecond, "the pool is suspended")

	// A change that was made just before is told to others. In the pool, this waits for the pool.
	var telling sync.WaitGroup
	for range 3 {
		telling.Go(func() { b.volumes.doubtWhile(true); b.volumes.doubtWhile(false); b.volumes.drop("nothing") })
	}
	require.NoError(t, inTime(t, "tell", func() error { telling.Wait(); return nil }))
	for what, call := range map[string]func() error{
		"create":     func() error { return b.Create(ctx, "new", cowcommon.VolumeOptions{}) },
		"clone":      func() error { return b.Clone(ctx, "new", "base", cowcommon.VolumeOptions{}) },
		"limit":      func() error { return b.SetLimit(ctx, "base", quota.Limit{Bytes: 1 << 30}) },
		"look again": func() error { return second(b.Stat(ctx, "base")) },
		"unmount":    func() error { return b.Unmount(ctx, "other") },
		"close view": view.Close,
		"close":      closing.Close,
	} {
		err := inTime(t, what, call)
		require.ErrorIs(t, err, errdefs.ErrUnavailable, what)
		require.ErrorContains(t, err, "zpool clear", what)
	}
	assert.Contains(t, fmt.Sprint(b.Status(ctx)), "suspended")

	// As if it had looked at the pool just before that was suspended.
	state := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(state, pool), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(state, pool, "state"), []byte("ONLINE\n"), 0o600))
	late.zfs.kstats, late.zfs.patience, late.zfs.grace = state, 100*time.Millisecond, 5*time.Second
	lateCalls := map[string]func(context.Context) error{
		"create":     func(ctx context.Context) error { return late.Create(ctx, "late", cowcommon.VolumeOptions{}) },
		"view":       func(ctx context.Context) error { return closeView(late.View(ctx, "third")) },
		"limit":      func(ctx context.Context) error { return late.SetLimit(ctx, "third", quota.Limit{Bytes: 1 << 30}) },
		"unmount":    func(ctx context.Context) error { _ = late.Unmount(ctx, "fourth"); return unix.EAGAIN },
		"close view": func(context.Context) error { _ = lateView.Close(); return unix.EAGAIN },
	}
	if homeInPool {
		lateCalls["record"] = func(ctx context.Context) error { return late.intend(ctx, "third", "") }
		lateCalls["lock"] = func(ctx context.Context) error {
			_, _, err := late.lockView(ctx, "third@"+viewPrefix+"late")
			return err
		}
	}
	for what, call := range lateCalls {
		soon, cancel := context.WithTimeout(ctx, time.Second)
		require.Error(t, inTime(t, "late "+what, func() error { return call(soon) }), what)
		cancel()
	}

	resume()
	require.NoError(t, <-written)
	require.Eventually(t, func() bool { return late.pendingNow() == idle && late.Left() == 0 }, testfs.Patience, 10*time.Millisecond)
	late.zfs.grace = testfs.Patience
	require.NoError(t, late.Close())
	_, err = b.Stat(ctx, "late")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	v, err := b.Stat(ctx, "third")
	require.NoError(t, err)
	assert.Zero(t, v.Limit)
	require.NoError(t, b.Unmount(ctx, "base"))
	require.NoError(t, b.Clone(ctx, "new", "base", cowcommon.VolumeOptions{}))
	for _, name := range []string{"new", "base", "other", "third", "fourth"} {
		require.NoError(t, b.Remove(ctx, name))
	}
	for _, dir := range []string{b.graph, b.views, b.locks, b.intents} {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Empty(t, entries, dir)
	}
	assert.Zero(t, b.Left())
}

// inTime makes a call that must not wait for the kernel, and fails the test if it hangs.
func inTime(t *testing.T, what string, call func() error) error {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- call() }()
	select {
	case err := <-result:
		return err
	case <-time.After(testfs.Patience):
		require.Fail(t, "it hangs", what)
		return nil
	}
}

// TestStuckUnmount: an unmount that does not end in time fails, and keeps nobody waiting. Its volume stays locked until it
// has ended.
func TestStuckUnmount(t *testing.T) {
	f := openFaulty(t)
	f.zfs.patience = 50 * time.Millisecond
	ctx := t.Context()
	require.NoError(t, f.Create(ctx, "image", cowcommon.VolumeOptions{}))
	require.NoError(t, f.Seal(ctx, "image"))
	mount := func(t *testing.T) func() error {
		require.NoError(t, second(f.Mount(ctx, "base", "")))
		return func() error { return f.Unmount(ctx, "base") }
	}
	view := func(name string) func(t *testing.T) func() error {
		return func(t *testing.T) func() error {
			v, err := f.View(ctx, name)
			require.NoError(t, err)
			return v.Close
		}
	}
	for what, use := range map[string]func(*testing.T) func() error{"mount": mount, "view": view("base"), "view of sealed": view("image")} {
		for _, fault := range stuckFaults {
			t.Run(what+" "+fault, func(t *testing.T) {
				require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
				before := f.state(t)
				end := use(t)
				f.faults.arm("unmount", fault)
				f.zfs.grace = 5 * time.Second // for the steps up to the unmount, on a slow machine
				require.ErrorIs(t, inTime(t, "end", end), errdefs.ErrUnavailable)
				assert.True(t, f.faults.stuck.Load(), "the unmount has not ended")
				if what == "mount" {
					require.ErrorIs(t, f.beside.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
				}
				f.zfs.grace = testfs.Patience
				f.faults.release()
				require.Eventually(t, func() bool { return !f.isDoubted() && slices.Equal(before, f.state(t)) }, testfs.Patience, 100*time.Millisecond)
				require.Eventually(t, func() bool { return f.beside.Remove(ctx, "base") == nil }, testfs.Patience, 100*time.Millisecond)
				for _, dir := range []string{f.views, f.graph, f.locks} {
					entries, err := os.ReadDir(dir)
					require.NoError(t, err)
					assert.Empty(t, entries, dir)
				}
			})
		}
	}
}

// slowKernel destroys no snapshot before end is closed.
type slowKernel struct {
	kernel
	begun atomic.Int32 // calls that destroy a snapshot
	end   chan struct{}
}

func (k *slowKernel) DestroySnapshot(name string) error {
	k.begun.Add(1)
	<-k.end
	return k.kernel.DestroySnapshot(name)
}

// TestCloseOfManyViews: the time that Close may take does not grow with the views: after a call that takes too long it begins no
// other. Views that it could not end are ended at the next start.
func TestCloseOfManyViews(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	ctx := t.Context()
	b, err := Open(ctx, filepath.Join(mountpoint, "home"), root, Options{})
	require.NoError(t, err)
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	list := func() string { return zfs(t, "list", "-Hr", "-t", "all", "-o", "name", root) }
	before := list()
	for range 6 {
		require.NoError(t, second(b.View(ctx, "base")))
	}
	slow := &slowKernel{kernel: b.zfs.kernel, end: make(chan struct{})}
	release := sync.OnceFunc(func() { close(slow.end) })
	defer release()
	b.zfs.kernel, b.zfs.grace, b.zfs.patience = slow, 5*time.Second, 100*time.Millisecond
	require.ErrorIs(t, inTime(t, "close", b.Close), errdefs.ErrUnavailable)
	assert.LessOrEqual(t, slow.begun.Load(), int32(1))
	b.zfs.grace = testfs.Patience
	release()
	awaitLeave(t, b)
	again := openOn(t, root, mountpoint)
	assert.True(t, again.recovered)
	assert.Equal(t, before, list())
}

// TestRecoveryBesideCloneInUse: cleaning up leaves the snapshot alone that a clone is being made from.
func TestRecoveryBesideCloneInUse(t *testing.T) {
	f := openFaulty(t)
	ctx := t.Context()
	require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
	dir := t.TempDir()
	run(t, "mount", "-t", "zfs", f.datasetOf("base"), dir) // so that no Backend has it locked
	defer run(t, "umount", dir)
	f.faults.race = func() {
		datasets, err := f.beside.volumes.all(ctx)
		assert.NoError(t, err)
		assert.NoError(t, f.beside.discardLeftOrigins(ctx, "base", originsOf(datasets, nil)))
		assert.ErrorIs(t, f.beside.Rename(ctx, "base", "renamed"), errdefs.ErrFailedPrecondition)
	}
	hit := f.faults.arm("clone", "race")
	require.NoError(t, f.Clone(ctx, "new", "base", cowcommon.VolumeOptions{}))
	testfs.Receive(t, hit)
	require.NoError(t, f.Remove(ctx, "new"))
}

// TestLateLimit: while a limit may still be set by a call whose caller left, nobody gives the name of the volume to
// another.
func TestLateLimit(t *testing.T) {
	f := openFaulty(t)
	f.zfs.patience = 50 * time.Millisecond
	ctx := t.Context()
	require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
	err := f.with(t, "set", "stuck-before", func(ctx context.Context) error {
		return f.SetLimit(ctx, "base", quota.Limit{Bytes: 1 << 30})
	})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorIs(t, f.beside.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
	require.ErrorIs(t, f.beside.Rename(ctx, "base", "renamed"), errdefs.ErrFailedPrecondition)
	soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, f.Remove(soon, "base"), context.DeadlineExceeded)
	f.faults.release()
	require.NoError(t, f.Remove(ctx, "base"), "after the call")
	require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.Eventually(t, func() bool { return f.Left() == 0 && !f.isDoubted() }, testfs.Patience, 10*time.Millisecond)
	d, err := f.stats(ctx, f.datasetOf("base"))
	require.NoError(t, err)
	limit, _ := d.Properties.Number("quota")
	assert.Zero(t, limit)
	require.NoError(t, f.Remove(ctx, "base"))
}
