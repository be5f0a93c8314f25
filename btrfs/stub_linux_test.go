package btrfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

// snapshotOf takes a snapshot of the subvolume at path, as tools do that take snapshots of a whole system.
func snapshotOf(t *testing.T, path, as string) {
	t.Helper()
	source, err := os.Open(path)
	require.NoError(t, err)
	defer source.Close()
	dir, err := os.Open(filepath.Dir(as))
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, btrfsctl.Snapshot(int(dir.Fd()), filepath.Base(as), int(source.Fd()), false, nil))
}

// A snapshot of a home has an empty directory for each layer. Such a home can be opened. It names these directories,
// and takes new layers.
func TestSnapshotOfAHome(t *testing.T) {
	ctx := t.Context()
	mnt := testfs.Btrfs(t)
	original := open(t, mnt, Options{})
	create(t, original, "layer")
	create(t, original, "gone")
	tree(t, original, "layer")
	view, err := original.View(ctx, "layer")
	require.NoError(t, err)
	copied := filepath.Join(mnt, "copied")
	snapshotOf(t, original.home, copied)
	require.NoError(t, original.Remove(ctx, "gone"))

	b, err := Open(t.Context(), copied, Options{})
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Close()) }()
	require.NoError(t, b.Create(ctx, "new", cowcommon.VolumeOptions{}))
	assertClean(t, b, "new")
	for name, original := range map[string]string{
		"layer": `"home/subvolumes/layer" from the top of the filesystem`, "gone": "which is gone",
	} {
		_, err := b.Stat(ctx, name)
		require.ErrorIs(t, err, errStub)
		assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		assert.ErrorContains(t, err, original)
		assert.ErrorIs(t, b.Remove(ctx, name), errStub)
		assert.ErrorIs(t, b.Clone(ctx, "clone", name, cowcommon.VolumeOptions{}), errStub)
		assert.ErrorIs(t, b.Create(ctx, name, cowcommon.VolumeOptions{}), errdefs.ErrAlreadyExists)
	}
	require.NoError(t, b.Clone(ctx, "clone", "new", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Remove(ctx, "new"))
	require.NoError(t, os.Remove(filepath.Join(copied, subvolumesName, "layer")), "as the message says")
	require.NoError(t, b.Create(ctx, "layer", cowcommon.VolumeOptions{}))
	assertClean(t, b, "clone", "layer")
	require.NoError(t, view.Close())
	require.NoError(t, original.Unmount(ctx, "layer"))
	assertClean(t, original, "layer")
}

// A home that is itself such a directory cannot be opened, and the error says so.
func TestHomeThatIsAStandIn(t *testing.T) {
	mnt := testfs.Btrfs(t)
	require.NoError(t, open(t, mnt, Options{}).Close())
	snapshotOf(t, mnt, filepath.Join(mnt, "snapshot"))
	_, err := Open(t.Context(), filepath.Join(mnt, "snapshot", "home"), Options{})
	require.ErrorIs(t, err, errStub)
	assert.ErrorContains(t, err, `"home" from the top of the filesystem`)
	_, err = Init(filepath.Join(mnt, "snapshot", "home"), nil, user.IdentityMapping{})
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	assert.ErrorContains(t, err, `"home" from the top of the filesystem`)
}
