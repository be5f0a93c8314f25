package containersstorage

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

// TestZFSDatasets: layers of the zfs driver are datasets beside each other, a child a clone of its parent.
func TestZFSDatasets(t *testing.T) {
	ctx := context.Background()
	dataset, mountpoint := testfs.ZFS(t)
	testfs.CheckLeaks(t)
	zfs := func(args ...string) { require.NoError(t, runZFS(ctx, args...)) }
	zfs("create", "-o", "mountpoint=legacy", dataset+"/base")
	dir := t.TempDir()
	require.NoError(t, unix.Mount(dataset+"/base", dir, "zfs", 0, ""))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "base"), nil, 0o600))
	require.NoError(t, unix.Unmount(dir, 0))
	zfs("snapshot", dataset+"/base@1")
	zfs("clone", "-o", "mountpoint=legacy", dataset+"/base@1", dataset+"/rw")
	zfs("destroy", "-d", dataset+"/base@1")

	s := newStorageAt(t, filepath.Join(mountpoint, "storage"), "zfs")
	s.imageLayer("base", "")
	s.imageLayer("gone", "base")
	s.layer("rw", "base")
	image, _ := s.image("image", []string{"image:1"}, "base")
	lost, _ := s.image("lost", nil, "base", "gone")
	s.container("container", "web", image, "rw")
	s.save()
	source, err := Open(ctx, Options{Dir: s.dir})
	require.NoError(t, err)
	defer func() { require.NoError(t, source.Close()) }()

	inv, err := source.Inventory(ctx)
	require.NoError(t, err)
	layers, images, containers, problems := ids(inv)
	assert.Equal(t, []string{"base", "rw"}, layers)
	assert.Equal(t, []string{image.Encoded()}, images)
	assert.Equal(t, []string{"container"}, containers)
	assert.Equal(t, []string{"image/" + lost.Encoded(), "layer/gone"}, problems)
	for _, layer := range layers {
		content, err := source.Open(ctx, layer)
		require.NoError(t, err)
		assert.Equal(t, dataset+"/"+layer, content.Volume)
		assert.Equal(t, migrate.Whole, content.Form)
		assert.Equal(t, []string{"base"}, names(t, content))
	}
	_, err = source.Open(ctx, "gone")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	require.NoError(t, unix.Mount(dataset+"/rw", dir, "zfs", 0, ""))
	require.ErrorIs(t, source.Remove(ctx), fault.ErrInUse)
	content, err := source.Open(ctx, "rw")
	require.NoError(t, err, "mounted elsewhere, for writing")
	assert.Equal(t, []string{"base"}, names(t, content))
	require.NoError(t, unix.Unmount(dir, 0))
	require.NoError(t, source.Remove(ctx))
	assertRemoved(t, s)
	assert.Error(t, runZFS(ctx, "list", dataset+"/base"))
}

func TestNotOnZFS(t *testing.T) {
	s := newStorage(t, "zfs")
	_, err := Open(context.Background(), Options{Dir: s.dir})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	source, err := Open(context.Background(), Options{Dir: s.dir, Dataset: "pool/layers"})
	require.NoError(t, err)
	assert.Equal(t, "pool/layers/x", source.dataset("x"))
	require.NoError(t, source.Close())
}
