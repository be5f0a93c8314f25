package image

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/zfs"
)

// newZFSStore returns an empty store on a dataset of its own.
func newZFSStore(t *testing.T) *Store {
	t.Helper()
	dataset, mnt := testfs.ZFS(t)
	require.NoError(t, exec.Command("zfs", "create", dataset+"/home").Run())
	opened, err := zfs.Init(filepath.Join(mnt, "home"), []string{"zfs.fsname=" + dataset + "/home"}, user.IdentityMapping{})
	require.NoError(t, err)
	driver, ok := opened.(*cowdriver.Driver)
	require.True(t, ok)
	t.Cleanup(func() { assert.NoError(t, driver.Cleanup()) })
	return NewStore(filepath.Join(mnt, "images"), driver, nil)
}

// TestZFS runs the tests on ZFS in which layers of images come from other layers.
func TestZFS(t *testing.T) {
	testfs.Zpool(t)
	t.Run("promote", func(t *testing.T) { testPromote(t, newZFSStore(t)) })
	t.Run("promote removals", func(t *testing.T) { testPromoteRemovals(t, newZFSStore) })
}
