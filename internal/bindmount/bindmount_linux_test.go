package bindmount

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

func TestBind(t *testing.T) {
	mnt := testfs.Btrfs(t)
	home := filepath.Join(mnt, "home")
	layer, target, inHome := filepath.Join(home, "layers/web"), t.TempDir(), filepath.Join(home, "view")
	for _, dir := range []string{layer, inHome} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(layer, "file"), []byte("data"), 0o644))

	_, err := Named(target, home)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorIs(t, Unmount(target), errdefs.ErrNotFound)
	require.Error(t, Bind(layer, filepath.Join(target, "none"), false))

	require.NoError(t, Bind(layer, target, true))
	require.NoError(t, Bind(layer, inHome, false))
	targets, err := Targets(layer, home)
	require.NoError(t, err)
	assert.Equal(t, []string{target}, targets, "mounts in the home are the driver's own")
	name, err := Named(target, home)
	require.NoError(t, err)
	assert.Equal(t, "web", name)
	assert.ErrorIs(t, os.WriteFile(filepath.Join(target, "file"), nil, 0o644), unix.EROFS)
	assert.NoError(t, os.WriteFile(filepath.Join(layer, "file"), nil, 0o644), "only the target is read-only")

	f, err := os.Open(filepath.Join(target, "file"))
	require.NoError(t, err)
	require.ErrorIs(t, Unmount(target), errdefs.ErrFailedPrecondition)
	require.NoError(t, f.Close())
	require.NoError(t, Unmount(target))
	require.NoError(t, Unmount(inHome))
	targets, err = Targets(layer, home)
	require.NoError(t, err)
	assert.Empty(t, targets)
}
