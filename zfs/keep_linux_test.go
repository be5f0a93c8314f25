package zfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
)

// TestKeep: Restore undoes all changes to a volume and to its limit. Nothing is left of either state.
func TestKeep(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b, ctx := openOn(t, root, mountpoint), t.Context()
	limit := quota.Limit{Bytes: 64 << 20}
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Create(ctx, "child", cowcommon.VolumeOptions{Limit: limit}))
	dir, err := b.Mount(ctx, "child", "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "own"), []byte("not written back yet"), 0o644))
	same := t.TempDir()
	require.NoError(t, os.CopyFS(same, os.DirFS(dir)))
	k, err := b.Keep(ctx, "child")
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, "own")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), randomBytes(1<<20), 0o600))
	require.NoError(t, b.SetLimit(ctx, "child", quota.Limit{Bytes: 8 << 20}))

	require.ErrorIs(t, k.Restore(ctx), errdefs.ErrFailedPrecondition, "it is in use")
	require.FileExists(t, filepath.Join(dir, "new"))
	require.NoError(t, b.Unmount(ctx, "child"))
	require.ErrorIs(t, b.Remove(ctx, "child"), errdefs.ErrFailedPrecondition, "it is kept")
	require.NoError(t, k.Restore(ctx))
	require.NoError(t, k.Restore(ctx), "again")
	require.NoError(t, k.Close())
	dir, err = b.Mount(ctx, "child", "")
	require.NoError(t, err)
	treecmp.Equal(t, same, dir, treecmp.Options{SkipTime: func(string) bool { return true }})
	require.NoError(t, b.Unmount(ctx, "child"))
	v, err := b.Stat(ctx, "child")
	require.NoError(t, err)
	assert.Equal(t, limit, v.Limit)
	assert.Equal(t, root+"\n"+b.datasetOf("base")+"\n"+b.datasetOf("child")+"\n", zfs(t, "list", "-Hr", "-t", "all", "-o", "name", root))

	// Restore does not destroy a newer snapshot.
	k, err = b.Keep(ctx, "child")
	require.NoError(t, err)
	zfs(t, "snapshot", b.datasetOf("child@newer"))
	require.Error(t, k.Restore(ctx))
	zfs(t, "destroy", b.datasetOf("child@newer"))
	require.NoError(t, k.Close())
	require.NoError(t, b.Remove(ctx, "child"))

	for name, want := range map[string]error{"base": errdefs.ErrFailedPrecondition, "none": errdefs.ErrNotFound} {
		if name == "base" {
			require.NoError(t, b.Seal(ctx, name))
		}
		_, err := b.Keep(ctx, name)
		require.ErrorIs(t, err, want, name)
	}
	entries, err := os.ReadDir(b.locks)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// TestKeepCrash: the next start forgets the kept states of a process that has ended.
func TestKeepCrash(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b, ctx := openOn(t, root, mountpoint), t.Context()
	require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
	k, err := b.keep(ctx, "volume")
	require.NoError(t, err)
	require.NoError(t, k.m.lock.Close(), "as the kernel does when the process ends")
	require.NoError(t, b.Close())
	b = openOn(t, root, mountpoint)
	assert.Equal(t, root+"\n"+b.datasetOf("volume")+"\n", zfs(t, "list", "-Hr", "-t", "all", "-o", "name", root))
	require.NoError(t, b.Remove(ctx, "volume"))
}

// TestRestoreInterrupted: the answer of a rollback that was interrupted agrees with the volume.
func TestRestoreInterrupted(t *testing.T) {
	f := openFaulty(t)
	ctx := t.Context()
	for _, fault := range faults {
		t.Run(fault, func(t *testing.T) {
			require.NoError(t, f.Create(ctx, "volume", cowcommon.VolumeOptions{}))
			k, err := f.Keep(ctx, "volume")
			require.NoError(t, err)
			fill(t, f.Backend, "volume", "later", []byte("later"))
			err = f.with(t, "rollback", fault, k.Restore)
			dir, mountErr := f.Mount(ctx, "volume", "")
			require.NoError(t, mountErr)
			if err == nil {
				assert.NoFileExists(t, filepath.Join(dir, "later"))
			} else {
				assert.FileExists(t, filepath.Join(dir, "later"), "%v", err)
			}
			assert.Equal(t, fault == "interrupted-before", err != nil, "%v", err)
			require.NoError(t, f.Unmount(ctx, "volume"))
			require.NoError(t, k.Restore(ctx))
			require.NoError(t, k.Close())
			require.NoError(t, f.Remove(ctx, "volume"))
		})
	}
}
