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

	_, err := Named(target, home, "btrfs")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorIs(t, Unmount(target), errdefs.ErrNotFound)
	require.Error(t, Bind(layer, filepath.Join(target, "none"), false))

	require.NoError(t, Bind(layer, target, true))
	require.NoError(t, Bind(layer, inHome, false))
	targets, err := Targets(layer, home, "btrfs")
	require.NoError(t, err)
	assert.Equal(t, []string{target}, targets, "mounts in the home are the driver's own")
	name, err := Named(target, home, "btrfs")
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
	targets, err = Targets(layer, home, "btrfs")
	require.NoError(t, err)
	assert.Empty(t, targets)
}

// TestOverlay: a layer can be an overlay of directories in the home. Other overlays are none.
func TestOverlay(t *testing.T) {
	mnt := testfs.Btrfs(t)
	home := filepath.Join(mnt, "home")
	overlay := func(source, layers, point string) {
		options := ""
		for name, dir := range map[string]string{"lowerdir": "lower", "upperdir": "upper", "workdir": "work"} {
			dir = filepath.Join(layers, dir)
			require.NoError(t, os.MkdirAll(dir, 0o755))
			options += "," + name + "=" + dir
		}
		require.NoError(t, os.MkdirAll(point, 0o755))
		require.NoError(t, unix.Mount(source, point, "overlay", 0, options[1:]))
		t.Cleanup(func() { assert.NoError(t, unix.Unmount(point, 0)) })
	}
	layer, target, other := filepath.Join(home, "roots/web"), t.TempDir(), filepath.Join(mnt, "other")
	overlay("web", filepath.Join(home, "layers/web"), layer)
	overlay("web", filepath.Join(mnt, "layers"), other)

	require.NoError(t, Bind(layer, target, false))
	targets, err := Targets(layer, home, "btrfs")
	require.NoError(t, err)
	assert.Equal(t, []string{target}, targets)
	name, err := Named(target, home, "btrfs")
	require.NoError(t, err)
	assert.Equal(t, "web", name)
	_, err = Named(other, home, "btrfs")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, Unmount(target))
}

// Flags that the store's mount forbids are forbidden where a layer is mounted read-only, by either system call.
func TestReadOnlyKeepsFlags(t *testing.T) {
	mnt := testfs.Btrfs(t)
	const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NODIRATIME
	for name, test := range map[string]struct {
		flags       uintptr
		setReadOnly func(string) error
	}{
		"mount_setattr, strict": {strict, setReadOnly},
		"remount, strict":       {strict, remountReadOnly},
		"remount, some":         {unix.MS_NOSUID | unix.MS_NOATIME, remountReadOnly},
		"mount_setattr, none":   {unix.MS_STRICTATIME, setReadOnly},
		"remount, none":         {unix.MS_STRICTATIME, remountReadOnly},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_BIND|test.flags, ""))
			target := t.TempDir()
			require.NoError(t, Bind(mnt, target, false))
			defer func() { assert.NoError(t, Unmount(target)) }()
			before := mountFlags(t, target)
			require.EqualValues(t, test.flags&^unix.MS_STRICTATIME, before&(strict|unix.ST_NOATIME))
			require.NoError(t, test.setReadOnly(target))
			assert.Equal(t, before|unix.ST_RDONLY, mountFlags(t, target))
		})
	}
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_BIND|strict, ""))
	target := t.TempDir()
	require.NoError(t, Bind(mnt, target, true))
	assert.EqualValues(t, strict|unix.ST_RDONLY, mountFlags(t, target)&(strict|unix.ST_RDONLY))
	require.NoError(t, Unmount(target))
}

func mountFlags(t *testing.T, path string) uintptr {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &fs))
	return uintptr(fs.Flags)
}
