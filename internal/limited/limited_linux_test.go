package limited_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/limited"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

func open(tb testing.TB, opts ...testfs.BtrfsOption) cowcommon.Backend {
	tb.Helper()
	driver, err := btrfs.Init(filepath.Join(testfs.Btrfs(tb, opts...), "home"), nil, user.IdentityMapping{})
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, driver.Cleanup()) })
	cow, ok := driver.(*cowdriver.Driver)
	require.True(tb, ok)
	return cow.Backend()
}

func limit(bytes uint64, scope quota.Scope) cowcommon.VolumeOptions {
	return cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: bytes, Scope: scope}}
}

// removing removes a volume before it is measured.
type removing struct {
	cowcommon.Backend
	name string
}

func (r removing) Usage(ctx context.Context, name string) (quota.Usage, error) {
	if name == r.name {
		if err := r.Remove(ctx, name); err != nil {
			return quota.Usage{}, err
		}
	}
	return cowcommon.Usage(ctx, r.Backend, name)
}

func (r removing) SetLimit(context.Context, string, quota.Limit) error {
	return errors.New("not called")
}

// TestVolumes: writable volumes with a limit are measured by the scope of their limit.
func TestVolumes(t *testing.T) {
	ctx := t.Context()
	b := open(t, testfs.WithClassicQuota())
	for name, opts := range map[string]cowcommon.VolumeOptions{
		"image": limit(32<<20, quota.ScopeLayer), "free": {}, "gone": limit(8<<20, quota.ScopeLayer),
	} {
		require.NoError(t, b.Create(ctx, name, opts))
	}
	fill := func(name string) {
		dir, err := b.Mount(ctx, name, "")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "of-"+name), make([]byte, 4<<20), 0o644))
		require.NoError(t, b.Sync(ctx, name))
		require.NoError(t, b.Unmount(ctx, name))
	}
	fill("image")
	require.NoError(t, b.Clone(ctx, "layer", "image", limit(16<<20, quota.ScopeLayer)))
	require.NoError(t, b.Clone(ctx, "total", "image", limit(64<<20, quota.ScopeTotal)))
	fill("total")
	volumes, err := limited.Volumes(ctx, removing{b, "gone"})
	require.NoError(t, err)
	got := make(map[string]limited.Volume)
	for _, v := range volumes {
		assert.WithinDuration(t, time.Now(), v.Created, time.Hour)
		got[v.Name] = v
	}
	require.Len(t, got, 3)
	assert.False(t, got["gone"].Counted)
	assert.Less(t, got["layer"].Held, uint64(1<<20))
	assert.Equal(t, uint64(16<<20), got["layer"].Limit.Bytes)
	assert.InDelta(t, 8<<20, got["total"].Held, 1<<20)
	assert.InDelta(t, 12.5, limited.Percent(got["total"].Held, got["total"].Limit.Bytes), 1)
	assert.Zero(t, limited.Percent(1, 0))

	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err = limited.Volumes(ctx, b)
	require.ErrorIs(t, err, context.Canceled)
}

// BenchmarkVolumes measures 1000 volumes.
func BenchmarkVolumes(b *testing.B) {
	backend := open(b, testfs.WithSimpleQuota())
	require.NoError(b, backend.Create(b.Context(), "image", cowcommon.VolumeOptions{}))
	for i := range 1000 {
		require.NoError(b, backend.Clone(b.Context(), fmt.Sprint("container-", i), "image", limit(16<<20, quota.ScopeLayer)))
	}
	for b.Loop() {
		volumes, err := limited.Volumes(b.Context(), backend)
		require.NoError(b, err)
		require.Len(b, volumes, 1000)
	}
}
