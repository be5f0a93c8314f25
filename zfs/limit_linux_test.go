package zfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// TestLimitIsNotFull: a limit that is too small for a volume is an error of the caller, and not a full filesystem.
// Nothing is left.
func TestLimitIsNotFull(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "image", cowcommon.VolumeOptions{}))
	fill(t, b, "image", "file", randomBytes(4<<20))
	require.NoError(t, b.Seal(ctx, "image"))
	before := zfs(t, "list", "-Hr", "-t", "all", "-o", "name", b.root)

	makers := map[string]func(cowcommon.VolumeOptions) error{
		"create": func(o cowcommon.VolumeOptions) error { return b.Create(ctx, "new", o) },
		"create owned": func(o cowcommon.VolumeOptions) error {
			o.UID, o.GID = 1, 1
			return b.Create(ctx, "new", o)
		},
		"clone": func(o cowcommon.VolumeOptions) error { return b.Clone(ctx, "new", "image", o) },
	}
	for what, create := range makers {
		for _, scope := range []quota.Scope{quota.ScopeLayer, quota.ScopeTotal} {
			refused := 0
			for _, size := range []uint64{1, 1 << 10, 16 << 10, 32 << 10, 128 << 10} {
				limit := quota.Limit{Bytes: size, Scope: scope}
				err := create(cowcommon.VolumeOptions{Limit: limit})
				if err == nil {
					require.NoError(t, b.Remove(ctx, "new"))
					continue
				}
				refused++
				require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%s %s", what, limit)
				assert.False(t, fault.IsFull(err), "%s %s: %v", what, limit, err)
				assert.Equal(t, before, zfs(t, "list", "-Hr", "-t", "all", "-o", "name", b.root), "%s %s", what, limit)
			}
			assert.Positive(t, refused, "%s %s", what, scope)
		}
	}

	require.NoError(t, b.Create(ctx, "data", cowcommon.VolumeOptions{}))
	fill(t, b, "data", "file", randomBytes(4<<20))
	zpoolSync(t, b.zfs.pool)
	for _, scope := range []quota.Scope{quota.ScopeLayer, quota.ScopeTotal} {
		for _, size := range []uint64{1, 1 << 20} {
			err := b.SetLimit(ctx, "data", quota.Limit{Bytes: size, Scope: scope})
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			assert.False(t, fault.IsFull(err), err)
		}
	}
}

// TestRestoreBelowLimit: a kept volume held more than its later limit allows. Restore brings back content and limit.
func TestRestoreBelowLimit(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "file", randomBytes(8<<20))
	kept, err := b.Keep(ctx, "base")
	require.NoError(t, err)
	dir, err := b.Mount(ctx, "base", "")
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, "file")))
	require.NoError(t, b.Unmount(ctx, "base"))
	zpoolSync(t, b.zfs.pool)
	require.NoError(t, b.SetLimit(ctx, "base", quota.Limit{Bytes: 2 << 20, Scope: quota.ScopeTotal}))

	require.NoError(t, kept.Restore(ctx))
	require.NoError(t, kept.Close())
	v, err := b.Stat(ctx, "base")
	require.NoError(t, err)
	assert.Equal(t, quota.Limit{}, v.Limit)
	dir, err = b.Mount(ctx, "base", "")
	require.NoError(t, err)
	assert.FileExists(t, filepath.Join(dir, "file"))
	require.NoError(t, b.Unmount(ctx, "base"))
}
