package tocontainerd

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

// TestZFSIsCopy: a volume is known to be a clone of the dataset that the source has opened, also where a legacy mount of it is
// bound.
func TestZFSIsCopy(t *testing.T) {
	root, _ := testfs.ZFS(t)
	for _, args := range [][]string{
		{"create", root + "/source"}, {"create", root + "/source2"}, {"snapshot", root + "/source@s"}, {"clone", root + "/source@s", root + "/clone"},
		{"clone", "-o", "mountpoint=legacy", root + "/source@s", root + "/legacy"},
	} {
		out, err := exec.Command("zfs", args...).CombinedOutput()
		require.NoError(t, err, "zfs %q: %s", args, out)
	}
	dir, bound := t.TempDir(), t.TempDir()
	require.NoError(t, unix.Mount(root+"/legacy", dir, "zfs", 0, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	require.NoError(t, os.Mkdir(filepath.Join(dir, "directory"), 0o700))
	require.NoError(t, unix.Mount(filepath.Join(dir, "directory"), bound, "", unix.MS_BIND, ""))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(bound, 0)) })
	opened, err := os.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, opened.Close()) })
	for path, want := range map[string]bool{dir: true, filepath.Join(dir, "directory"): false, bound: false} {
		is, err := isCopy([]mount.Mount{{Type: "bind", Source: path, Options: []string{"rbind"}}}, opened, &migrate.Content{Dir: opened, Volume: root + "/source"})
		require.NoError(t, err)
		assert.Equal(t, want, is, path)
	}
	for of, want := range map[string]bool{"/source": true, "/source2": false, "/sourc": false, "/clone": false} {
		is, err := isCopy([]mount.Mount{{Type: "zfs", Source: root + "/clone"}}, nil, &migrate.Content{Volume: root + of})
		require.NoError(t, err)
		assert.Equal(t, want, is, of)
	}
	_, err = isCopy([]mount.Mount{{Type: "zfs", Source: root + "/none"}}, nil, &migrate.Content{Volume: root + "/source"})
	require.ErrorIs(t, err, unix.ENOENT)
}
