package btrfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// mountOn mounts source on a directory of its own until the test ends, or until the function that it returns is called.
func mountOn(t *testing.T, source, fsType string, flags uintptr, data string) (end func()) {
	t.Helper()
	_, end = mountAt(t, source, fsType, flags, data)
	return end
}

func mountAt(t *testing.T, source, fsType string, flags uintptr, data string) (dir string, end func()) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, unix.Mount(source, dir, fsType, flags, data))
	mounted := true
	end = func() {
		if mounted {
			mounted = false
			assert.NoError(t, unix.Unmount(dir, 0))
		}
	}
	t.Cleanup(end)
	return dir, end
}

// mountBy mounts a volume as MountSpec says.
func mountBy(t *testing.T, b *Backend, name string, readOnly bool) (dir string, end func()) {
	t.Helper()
	spec, err := b.MountSpec(t.Context(), name, readOnly)
	require.NoError(t, err)
	var flags uintptr
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	data := slices.DeleteFunc(slices.Clone(spec.Options), func(option string) bool {
		if option == "noatime" {
			flags |= unix.MS_NOATIME
		}
		return option == "noatime"
	})
	return mountAt(t, spec.Source, spec.Type, flags, strings.Join(data, ","))
}

func deviceOf(t *testing.T, mnt string) string {
	t.Helper()
	m, err := mountOf(mnt)
	require.NoError(t, err)
	return m.Source
}

func hasNoatime(t *testing.T, dir string) bool {
	t.Helper()
	var stat unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &stat))
	return stat.Flags&unix.ST_NOATIME != 0
}

// TestMountSpec mounts volumes as MountSpec says, for homes that are reached in different ways.
func TestMountSpec(t *testing.T) {
	for name, c := range map[string]struct {
		place   func(t *testing.T, mnt string) string // returns the path of the home, on the filesystem mounted on mnt
		subvol  string                                // the path of the volume from the top of the filesystem
		noatime bool
	}{
		"top of the filesystem": {func(_ *testing.T, mnt string) string { return mnt }, "/home/subvolumes/volume", true},
		"directory": {func(t *testing.T, mnt string) string {
			require.NoError(t, os.MkdirAll(mnt+"/var/lib", 0o755))
			return mnt + "/var/lib"
		}, "/var/lib/home/subvolumes/volume", true},
		"symbolic link": {func(t *testing.T, mnt string) string {
			link := filepath.Join(t.TempDir(), "link")
			require.NoError(t, os.Symlink(mnt, link))
			return link
		}, "/home/subvolumes/volume", true},
		"mounted from a subvolume": {func(t *testing.T, mnt string) string {
			createSubvolume(t, mnt, "@store")
			dir, _ := mountAt(t, deviceOf(t, mnt), "btrfs", unix.MS_NOATIME, "subvol=/@store")
			return dir
		}, "/@store/home/subvolumes/volume", true},
		"inside a subvolume": {func(t *testing.T, mnt string) string {
			createSubvolume(t, mnt, "inner")
			return mnt + "/inner"
		}, "/inner/home/subvolumes/volume", true},
		"bind mount": {func(t *testing.T, mnt string) string {
			require.NoError(t, os.MkdirAll(mnt+"/data/cowshed", 0o755))
			dir, _ := mountAt(t, mnt+"/data/cowshed", "", unix.MS_BIND, "")
			return dir
		}, "/data/cowshed/home/subvolumes/volume", true},
		"over another mount": {func(t *testing.T, mnt string) string {
			dir, _ := mountAt(t, "none", "tmpfs", 0, "")
			require.NoError(t, unix.Mount(mnt, dir, "", unix.MS_BIND, ""))
			t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
			return dir
		}, "/home/subvolumes/volume", true},
		"with access times": {func(t *testing.T, mnt string) string {
			dir, _ := mountAt(t, deviceOf(t, mnt), "btrfs", unix.MS_RELATIME, "")
			return dir
		}, "/home/subvolumes/volume", false},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, c.place(t, testfs.Btrfs(t)), Options{})
			dir := create(t, b, "volume")
			spec, err := b.MountSpec(t.Context(), "volume", false)
			require.NoError(t, err)
			assert.Equal(t, "btrfs", spec.Type)
			assert.Contains(t, spec.Options, "subvol="+c.subvol)

			by, end := mountBy(t, b, "volume", false)
			content, err := os.ReadFile(by + "/file")
			require.NoError(t, err)
			assert.Equal(t, "content", string(content))
			require.NoError(t, os.WriteFile(by+"/file", []byte("through the mount"), 0o600))
			content, err = os.ReadFile(dir + "/file")
			require.NoError(t, err)
			assert.Equal(t, "through the mount", string(content))
			assert.Equal(t, c.noatime, hasNoatime(t, by))
			assert.ErrorIs(t, b.Remove(t.Context(), "volume"), errdefs.ErrFailedPrecondition)
			end()

			by, end = mountBy(t, b, "volume", true)
			assert.ErrorIs(t, os.WriteFile(by+"/file", nil, 0o600), unix.EROFS)
			end()
			require.NoError(t, b.Seal(t.Context(), "volume"))
			by, end = mountBy(t, b, "volume", true)
			assert.FileExists(t, by+"/file")
			end()
			require.NoError(t, b.Remove(t.Context(), "volume"))
		})
	}
}

// If a home has been unmounted from the place where it was opened, others cannot mount its volumes either.
func TestMountSpecOfDetachedHome(t *testing.T) {
	mnt := testfs.Btrfs(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount(mnt, dir, "", unix.MS_BIND, ""))
	b := open(t, dir, Options{})
	create(t, b, "volume")
	require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))
	require.NoError(t, os.Mkdir(dir+"/home", 0o700))
	_, err := b.MountSpec(t.Context(), "volume", false)
	assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)

	require.NoError(t, unix.Mount(mnt, dir, "", unix.MS_BIND, ""))
	spec, err := b.MountSpec(t.Context(), "volume", false)
	require.NoError(t, err)
	assert.Contains(t, spec.Options, "subvol=/home/subvolumes/volume")
	require.NoError(t, b.Close())
	require.NoError(t, unix.Unmount(dir, 0))
}

func createSubvolume(t *testing.T, mnt, name string) {
	t.Helper()
	dir, err := os.Open(mnt)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, btrfsctl.CreateSubvolume(int(dir.Fd()), name, nil))
}
