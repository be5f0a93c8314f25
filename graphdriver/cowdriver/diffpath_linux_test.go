package cowdriver_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDiffPathCopiesNothing: the filesystem says where to look, and data is shared.
func TestDiffPathCopiesNothing(t *testing.T) {
	d := newDriver(t)
	const size = 64 << 20
	require.NoError(t, d.Create("image", "", nil))
	write(t, d, "image", "large", 1<<20)
	require.NoError(t, d.CreateReadWrite("container", "image", nil))
	dir, err := d.Get("container", "")
	require.NoError(t, err)
	data := make([]byte, size)
	_, _ = rand.Read(data)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), data, 0o600))
	require.NoError(t, d.Put("container"))
	used := func() int64 {
		testfs.Sync(t, dir)
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}

	before := used()
	path, release, err := d.DiffPath("container")
	require.NoError(t, err)
	assert.Less(t, used()-before, int64(size/8))
	assert.Equal(t, cowcommon.CompareStats{Native: 1}, d.CompareStats())
	entries, err := os.ReadDir(path)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	got, err := os.ReadFile(filepath.Join(path, "new"))
	require.NoError(t, err)
	assert.Equal(t, data, got)
	require.NoError(t, release())
}

// TestDiffPathEnds: Cleanup removes the directories that were not released.
func TestDiffPathEnds(t *testing.T) {
	mnt := testfs.Btrfs(t)
	home := filepath.Join(mnt, "btrfs")
	d, err := btrfs.Init(home, nil, user.IdentityMapping{})
	require.NoError(t, err)
	require.NoError(t, d.Create("layer", "", nil))
	path, release, err := d.(*cowdriver.Driver).DiffPath("layer")
	require.NoError(t, err)
	require.NoError(t, d.Cleanup())
	assert.NoDirExists(t, path)
	require.NoError(t, release())
	assert.ElementsMatch(t, []string{"btrfs", "btrfs/subvolumes/layer"}, testfs.Subvolumes(t, mnt))
}

func TestBaseImages(t *testing.T) {
	d := newDriver(t)
	infos, err := d.GetCustomImageInfos()
	require.NoError(t, err)
	assert.Equal(t, []graphdriver.CustomImageInfo{}, infos)

	images := []graphdriver.CustomImageInfo{{ID: "1", Name: "host", Version: "12", Path: "/srv/host", Size: 7}}
	with := cowdriver.New("with", d.Backend(), cowdriver.Options{BaseImages: images})
	infos, err = with.GetCustomImageInfos()
	require.NoError(t, err)
	assert.Equal(t, images, infos)

	none := cowdriver.New("none", struct{ cowcommon.Backend }{d.Backend()}, cowdriver.Options{})
	require.NoError(t, none.Create("layer", "", nil))
	_, _, err = none.DiffPath("layer")
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	readOnly := cowdriver.New("read-only", cowcommon.ReadOnly(d.Backend(), unix.EROFS), cowdriver.Options{})
	_, _, err = readOnly.DiffPath("layer")
	require.ErrorIs(t, err, cowcommon.ErrReadOnly)
}
