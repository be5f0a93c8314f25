package btrfs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
)

// TestKeep: Restore undoes all changes to a volume, its limit is as before, and nothing is left of either state.
func TestKeep(t *testing.T) {
	inEachMode(t, func(t *testing.T, mnt string) {
		b, ctx := open(t, mnt, Options{}), t.Context()
		require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
		put(t, b, "base", "file", "base")
		limit := quota.Limit{Bytes: 64 * mib}
		require.NoError(t, b.Clone(ctx, "child", "base", cowcommon.VolumeOptions{Limit: limit}))
		require.NoError(t, b.Clone(ctx, "same", "base", cowcommon.VolumeOptions{}))
		when := time.Now()
		for _, name := range []string{"child", "same"} {
			put(t, b, name, "own", "not written back yet")
			dir := tree(t, b, name)
			require.NoError(t, os.Chtimes(filepath.Join(dir, "own"), when, when))
			require.NoError(t, os.Chtimes(dir, when, when))
			require.NoError(t, b.Unmount(ctx, name))
		}
		for range 2 {
			kept, err := b.Keep(ctx, "child")
			require.NoError(t, err)
			dir := tree(t, b, "child")
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "file")))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "own"), []byte("changed"), 0o600))
			require.NoError(t, os.Chmod(dir, 0o700))
			require.NoError(t, b.SetLimit(ctx, "child", quota.Limit{Bytes: mib}))

			require.ErrorIs(t, kept.Restore(ctx), errdefs.ErrFailedPrecondition, "it is in use")
			require.NoFileExists(t, filepath.Join(dir, "file"))
			require.NoError(t, b.Unmount(ctx, "child"))
			require.NoError(t, kept.Restore(ctx))
			require.NoError(t, kept.Close())
			treecmp.Equal(t, tree(t, b, "same"), tree(t, b, "child"), treecmp.Options{})
			require.NoError(t, b.Unmount(ctx, "same"))
			require.NoError(t, b.Unmount(ctx, "child"))
			v, err := b.Stat(ctx, "child")
			require.NoError(t, err)
			assert.Equal(t, limit, v.Limit)
			assertClean(t, b, "base", "child", "same")
		}
		kept, err := b.Keep(ctx, "child")
		require.NoError(t, err)
		require.NoError(t, b.Remove(ctx, "child"))
		require.ErrorIs(t, kept.Restore(ctx), errdefs.ErrNotFound)
		require.NoError(t, kept.Close())
		assertClean(t, b, "base", "same")
	})
}

// TestKeepNot: a sealed volume needs no keeping, and a volume with nested subvolumes cannot be kept.
func TestKeepNot(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Create(ctx, "outer", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Seal(ctx, "base"))
	outer, err := os.Open(tree(t, b, "outer"))
	require.NoError(t, err)
	defer outer.Close()
	require.NoError(t, btrfsctl.CreateSubvolume(int(outer.Fd()), "inner", nil))
	require.NoError(t, b.Unmount(ctx, "outer"))
	for name, want := range map[string]error{
		"base": errdefs.ErrFailedPrecondition, "outer": errdefs.ErrNotImplemented, "none": errdefs.ErrNotFound,
	} {
		_, err := b.Keep(ctx, name)
		require.ErrorIs(t, err, want, name)
	}
	assertClean(t, b, "base", "outer")
}

// TestKeepCrash: the next start destroys the kept state of a process that has ended.
func TestKeepCrash(t *testing.T) {
	mnt, ctx := testfs.Btrfs(t), t.Context()
	b, err := Open(t.Context(), filepath.Join(mnt, "home"), Options{})
	require.NoError(t, err)
	require.NoError(t, b.Create(ctx, "volume", cowcommon.VolumeOptions{}))
	_, err = b.Keep(ctx, "volume")
	require.NoError(t, err)
	require.NoError(t, b.Close())
	assertClean(t, open(t, mnt, Options{}), "volume")
}

// put writes a file in a volume.
func put(t *testing.T, b *Backend, volume, name, data string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(tree(t, b, volume), name), []byte(data), 0o644))
	require.NoError(t, b.Unmount(t.Context(), volume))
}

// TestRestoreAfterExchange: a volume that got another content keeps that.
func TestRestoreAfterExchange(t *testing.T) {
	b, ctx := open(t, testfs.Btrfs(t), Options{}), t.Context()
	for _, name := range []string{"a", "b"} {
		require.NoError(t, b.Create(ctx, name, cowcommon.VolumeOptions{}))
		put(t, b, name, name, name)
	}
	kept, err := b.Keep(ctx, "a")
	require.NoError(t, err)
	require.NoError(t, b.Exchange(ctx, "a", "b"))
	require.ErrorIs(t, kept.Restore(ctx), errdefs.ErrNotFound)
	require.NoError(t, kept.Close())
	assert.FileExists(t, filepath.Join(tree(t, b, "a"), "b"))
	assert.FileExists(t, filepath.Join(tree(t, b, "b"), "a"))
	for _, name := range []string{"a", "b"} {
		require.NoError(t, b.Unmount(ctx, name))
	}
	assertClean(t, b, "a", "b")
}
