package btrfsctl_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// quotaFS is a fresh filesystem, open at its root.
func quotaFS(t *testing.T, opts ...testfs.BtrfsOption) (dir string, fd int) {
	t.Helper()
	dir = testfs.Btrfs(t, opts...)
	f, err := os.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.Close()) })
	return dir, int(f.Fd())
}

func TestQuotaOff(t *testing.T) {
	_, fd := quotaFS(t)
	status, err := btrfsctl.ReadQuotaStatus(fd)
	require.NoError(t, err)
	assert.Zero(t, status)
	require.ErrorIs(t, btrfsctl.LimitQgroup(fd, btrfsctl.FSTreeObjectID, btrfsctl.QgroupLimit{}), unix.ENOTCONN)
	require.ErrorIs(t, btrfsctl.CreateQgroup(fd, 1<<48|1), unix.ENOTCONN)
	require.ErrorIs(t, btrfsctl.RemoveQgroup(fd, 1<<48|1), unix.ENOTCONN)
	assert.Contains(t, []error{unix.ENOTCONN, unix.EINVAL}, btrfsctl.StartRescan(fd), "EINVAL on Linux 6.1")
	require.NoError(t, btrfsctl.WaitRescan(fd))
	_, err = btrfsctl.QgroupLimits(fd, btrfsctl.FSTreeObjectID)
	require.ErrorIs(t, err, unix.ENOENT)
	_, err = btrfsctl.NextQgroup(fd, 0)
	require.ErrorIs(t, err, unix.ENOENT)
	require.NoError(t, btrfsctl.DisableQuota(fd))
}

// TestQuotaModes turns each mode on and off and checks that the kernel ignores a wish for the other one.
func TestQuotaModes(t *testing.T) {
	_, fd := quotaFS(t)
	if err := btrfsctl.EnableSimpleQuota(fd); errors.Is(err, unix.EINVAL) {
		testfs.Skip(t, "simple quotas need Linux 6.7")
	}
	require.NoError(t, btrfsctl.DisableQuota(fd))
	for range 2 {
		require.NoError(t, btrfsctl.EnableSimpleQuota(fd))
		require.NoError(t, btrfsctl.EnableQuota(fd))
		status, err := btrfsctl.ReadQuotaStatus(fd)
		require.NoError(t, err)
		assert.Equal(t, btrfsctl.QuotaStatus{On: true, Simple: true}, status)
		require.ErrorIs(t, btrfsctl.StartRescan(fd), unix.EINVAL)
		require.NoError(t, btrfsctl.DisableQuota(fd))

		require.NoError(t, btrfsctl.EnableQuota(fd))
		require.NoError(t, btrfsctl.EnableSimpleQuota(fd))
		require.NoError(t, btrfsctl.WaitRescan(fd))
		running, _, err := btrfsctl.RescanRunning(fd)
		require.NoError(t, err)
		assert.False(t, running)
		status, err = btrfsctl.ReadQuotaStatus(fd)
		require.NoError(t, err)
		assert.Equal(t, btrfsctl.QuotaStatus{On: true}, status)
		require.NoError(t, btrfsctl.StartRescan(fd))
		require.NoError(t, btrfsctl.WaitRescan(fd))
		require.NoError(t, btrfsctl.DisableQuota(fd))
	}
}

func TestQgroups(t *testing.T) {
	_, fd := quotaFS(t, testfs.WithClassicQuota())
	const id uint64 = 1<<48 | 7 // 1/7
	require.NoError(t, btrfsctl.CreateQgroup(fd, id))
	require.ErrorIs(t, btrfsctl.CreateQgroup(fd, id), unix.EEXIST)

	first, err := btrfsctl.NextQgroup(fd, 0)
	require.NoError(t, err)
	assert.Equal(t, uint64(btrfsctl.FSTreeObjectID), first)
	next, err := btrfsctl.NextQgroup(fd, first+1)
	require.NoError(t, err)
	assert.Equal(t, id, next)

	require.NoError(t, btrfsctl.RemoveQgroup(fd, id))
	require.ErrorIs(t, btrfsctl.RemoveQgroup(fd, id), unix.ENOENT)
	require.ErrorIs(t, btrfsctl.LimitQgroup(fd, id, btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxRfer, MaxRfer: 1}), unix.ENOENT)
}

func TestLimitQgroup(t *testing.T) {
	_, fd := quotaFS(t, testfs.WithClassicQuota())
	limits := func() btrfsctl.QgroupLimit {
		l, err := btrfsctl.QgroupLimits(fd, btrfsctl.FSTreeObjectID)
		require.NoError(t, err)
		return l
	}
	const size = 1 << 30
	require.NoError(t, btrfsctl.LimitQgroup(fd, btrfsctl.FSTreeObjectID, btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxRfer, MaxRfer: size}))
	assert.Equal(t, btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxRfer, MaxRfer: size}, limits())

	// 0 is the subvolume of the descriptor, and a limit whose flag is not set stays.
	require.NoError(t, btrfsctl.LimitQgroup(fd, 0, btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxExcl, MaxExcl: size}))
	assert.Equal(t, btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxRfer | btrfsctl.LimitMaxExcl, MaxRfer: size, MaxExcl: size}, limits())

	require.NoError(t, btrfsctl.LimitQgroup(fd, 0, btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxRfer, MaxRfer: btrfsctl.ClearLimit}))
	assert.Equal(t, btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxExcl, MaxExcl: size}, limits())
}

// TestRemoveQgroupInUse checks that the qgroup of a subvolume that exists cannot be removed.
func TestRemoveQgroupInUse(t *testing.T) {
	dir, fd := quotaFS(t, testfs.WithSimpleQuota())
	require.NoError(t, btrfsctl.CreateSubvolume(fd, "a", nil))
	f, err := os.Open(filepath.Join(dir, "a"))
	require.NoError(t, err)
	defer f.Close()
	info, err := btrfsctl.Info(int(f.Fd()))
	require.NoError(t, err)
	require.NoError(t, btrfsctl.Commit(fd))

	exists, err := btrfsctl.SubvolumeExists(fd, info.ID)
	require.NoError(t, err)
	assert.True(t, exists)
	exists, err = btrfsctl.SubvolumeExists(fd, info.ID+1)
	require.NoError(t, err)
	assert.False(t, exists)
	referenced, exclusive, err := btrfsctl.QgroupUsage(fd, info.ID)
	require.NoError(t, err)
	assert.Positive(t, referenced)
	assert.Equal(t, referenced, exclusive)
	require.ErrorIs(t, btrfsctl.RemoveQgroup(fd, info.ID), unix.EBUSY)
}
