package btrfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// create makes a volume with one file and returns the path of its root.
func create(t *testing.T, b *Backend, name string) string {
	t.Helper()
	require.NoError(t, b.Create(t.Context(), name, cowcommon.VolumeOptions{}))
	dir := filepath.Join(b.home, subvolumesName, name)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600))
	return dir
}

func isSealed(t *testing.T, b *Backend, name string) bool {
	t.Helper()
	v, err := b.Stat(t.Context(), name)
	require.NoError(t, err)
	return v.Sealed
}

// A sealed volume is read-only and survives a power cut, even if nobody has written it back before.
func TestSealIsDurable(t *testing.T) {
	mnt := testfs.Btrfs(t)
	b := open(t, mnt, Options{})
	dir := create(t, b, "volume")
	require.NoError(t, b.Seal(t.Context(), "volume"))
	copied := testfs.PowerCut(t, mnt)

	assert.True(t, isSealed(t, b, "volume"))
	assert.ErrorIs(t, os.WriteFile(dir+"/file", nil, 0o600), unix.EROFS)

	after := open(t, copied, Options{})
	assert.True(t, isSealed(t, after, "volume"))
	content, err := os.ReadFile(filepath.Join(tree(t, after, "volume"), "file"))
	require.NoError(t, err)
	assert.Equal(t, "content", string(content))
	require.NoError(t, after.Unmount(t.Context(), "volume"))
}

func TestSealTwice(t *testing.T) {
	b := open(t, testfs.Btrfs(t), Options{})
	dir := create(t, b, "volume")
	require.NoError(t, b.Seal(t.Context(), "volume"))
	info := func() btrfsctl.Subvolume {
		f, err := os.Open(dir)
		require.NoError(t, err)
		defer f.Close()
		info, err := btrfsctl.Info(int(f.Fd()))
		require.NoError(t, err)
		return info
	}
	before := info()
	require.NoError(t, b.Seal(t.Context(), "volume"))
	assert.Equal(t, before, info())

	require.NoError(t, b.Clone(t.Context(), "child", "volume", cowcommon.VolumeOptions{}))
	require.NoError(t, os.WriteFile(filepath.Join(tree(t, b, "child"), "file"), nil, 0o600))
	require.NoError(t, b.Unmount(t.Context(), "child"))
	assert.Equal(t, before.ID, info().ID)
}

// A volume that somebody uses, in any way, is not sealed and stays writable.
func TestSealInUse(t *testing.T) {
	mnt := testfs.Btrfs(t)
	b := open(t, mnt, Options{})
	dir := create(t, b, "volume")
	other := open(t, mnt, Options{}) // as another process would

	for name, use := range map[string]func(t *testing.T) (end func()){
		"mounted": func(t *testing.T) func() {
			tree(t, b, "volume")
			return func() { require.NoError(t, b.Unmount(t.Context(), "volume")) }
		},
		"mounted by another process": func(t *testing.T) func() {
			tree(t, other, "volume")
			return func() { require.NoError(t, other.Unmount(t.Context(), "volume")) }
		},
		"bind-mounted": func(t *testing.T) func() { return mountOn(t, dir, "", unix.MS_BIND, "") },
		"mounted by its spec": func(t *testing.T) func() {
			_, end := mountBy(t, b, "volume", false)
			return end
		},
		"mounted read-only by its spec": func(t *testing.T) func() {
			_, end := mountBy(t, b, "volume", true)
			return end
		},
	} {
		t.Run(name, func(t *testing.T) {
			end := use(t)
			assert.ErrorIs(t, b.Seal(t.Context(), "volume"), errdefs.ErrFailedPrecondition)
			assert.False(t, isSealed(t, b, "volume"))
			assert.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte(name), 0o600))
			end()
		})
	}
	require.NoError(t, b.Seal(t.Context(), "volume"), "after all of them have ended")
	assert.True(t, isSealed(t, other, "volume"))
}

func TestSealErrors(t *testing.T) {
	b := open(t, testfs.Btrfs(t), Options{})
	assert.ErrorIs(t, b.Seal(t.Context(), "missing"), errdefs.ErrNotFound)
	assert.ErrorIs(t, b.Seal(t.Context(), "../home"), errdefs.ErrInvalidArgument)
	_, err := b.MountSpec(t.Context(), "missing", false)
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = b.MountSpec(t.Context(), "../home", true)
	assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}
