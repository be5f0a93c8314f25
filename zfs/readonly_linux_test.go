package zfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/quota"
)

// TestReadOnly: layers that cannot be written to can be listed, compared and mounted. The reason is a pool that was
// imported read-only, a property of the dataset, or an option.
func TestReadOnly(t *testing.T) {
	pool, dir := ownPool(t, 128<<20)
	root, mountpoint := pool+"/layers", filepath.Join(t.TempDir(), "mnt")
	zfs(t, "create", "-o", "mountpoint="+mountpoint, root)
	home := filepath.Join(mountpoint, "home")
	b, err := Open(t.Context(), home, root, Options{})
	require.NoError(t, err)
	require.NoError(t, b.Create(t.Context(), "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "base", []byte("base"))
	require.NoError(t, b.Clone(t.Context(), "mid", "base", cowcommon.VolumeOptions{}))
	fill(t, b, "mid", "mid", []byte("mid"))
	require.NoError(t, b.Clone(t.Context(), "web", "mid", cowcommon.VolumeOptions{}))
	fill(t, b, "web", "web", []byte("web"))
	require.NoError(t, b.Close())

	t.Run("dataset", func(t *testing.T) {
		zfs(t, "set", "readonly=on", root)
		assertReads(t, home)
		zfs(t, "set", "readonly=off", root)
	})
	t.Run("option", func(t *testing.T) {
		opened, err := Init(home, []string{"zfs.read_only=true"}, user.IdentityMapping{})
		require.NoError(t, err)
		require.ErrorIs(t, opened.Create("new", "", nil), cowcommon.ErrReadOnly)
		require.NoError(t, opened.Cleanup())
	})
	t.Run("pool", func(t *testing.T) {
		run(t, "zpool", "export", pool)
		run(t, "zpool", "import", "-d", dir, "-o", "cachefile=none", "-o", "readonly=on", pool)
		assertReads(t, home)
		names, err := Names(t.Context(), home, nil)
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{"base", "mid", "web"}, names)
	})
}

// assertReads asserts that the layers in home, which cannot be written to, can be read.
func assertReads(t *testing.T, home string) {
	t.Helper()
	_, err := Init(home, nil, user.IdentityMapping{})
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	require.ErrorIs(t, err, unix.EROFS)
	var why *detect.ReadOnlyError
	require.ErrorAs(t, err, &why)

	opened, err := Init(home, []string{"zfs.read_only=true"}, user.IdentityMapping{})
	require.NoError(t, err)
	d, ok := opened.(*cowdriver.Driver)
	require.True(t, ok)
	for _, test := range []struct {
		layer, parent string
		native        bool
	}{{"mid", "base", true}, {"web", "mid", false}} { // web is not sealed
		c, err := d.Compare(t.Context(), test.layer, test.parent, cowcommon.Auto)
		require.NoError(t, err)
		require.Len(t, c.Changes, 1)
		assert.Equal(t, "/"+test.layer, c.Changes[0].Path)
		assert.Equal(t, test.native, c.Native, c.Reason)
		require.NoError(t, c.Close())
	}
	for _, layer := range []string{"mid", "web"} {
		dir, err := d.Get(layer, "")
		require.NoError(t, err)
		assert.FileExists(t, filepath.Join(dir, layer))
		assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644), unix.EROFS)
		require.NoError(t, d.Put(layer))
		_, err = d.Usage(t.Context(), layer)
		require.NoError(t, err)
		require.ErrorIs(t, d.Remove(layer), cowcommon.ErrReadOnly)
		require.ErrorIs(t, cowcommon.SetLimit(t.Context(), d.Backend(), layer, quota.Limit{}), cowcommon.ErrReadOnly)
	}
	err = d.Create("new", "mid", nil)
	require.ErrorIs(t, err, cowcommon.ErrReadOnly)
	assert.ErrorContains(t, err, why.Cause)
	require.NoError(t, d.Cleanup())

	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(RunDir))
	require.NoError(t, err)
	assert.Empty(t, mounts)
}
