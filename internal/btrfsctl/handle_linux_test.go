package btrfsctl

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// Kernels that want the generation of an inode in its handle get the right one: of a snapshot, whose root directory is
// older than itself.
func TestOpenRootWithGeneration(t *testing.T) {
	mnt := testfs.Btrfs(t)
	top, err := os.Open(mnt)
	require.NoError(t, err)
	defer top.Close()
	fd := int(top.Fd())
	require.NoError(t, CreateSubvolume(fd, "source", nil))
	require.NoError(t, unix.Syncfs(fd))
	source, err := os.Open(filepath.Join(mnt, "source"))
	require.NoError(t, err)
	defer source.Close()
	require.NoError(t, Snapshot(fd, "snapshot", int(source.Fd()), false, nil))
	snapshot, err := os.Open(filepath.Join(mnt, "snapshot"))
	require.NoError(t, err)
	defer snapshot.Close()
	info, err := Info(int(snapshot.Fd()))
	require.NoError(t, err)

	generation, err := inodeGeneration(fd, info.ID, FirstFreeObjectID)
	require.NoError(t, err)
	const getVersion = 0x80087601 // FS_IOC_GETVERSION of linux/fs.h, 64 bits
	want, err := unix.IoctlGetInt(int(snapshot.Fd()), getVersion)
	require.NoError(t, err)
	assert.EqualValues(t, want, generation)
	for _, f := range []*os.File{source, snapshot} {
		got, err := Generation(int(f.Fd()))
		require.NoError(t, err)
		assert.Equal(t, generation, got)
	}

	root, err := openHandle(fd, info.ID, FirstFreeObjectID, generation)
	require.NoError(t, err)
	opened, err := Info(root)
	require.NoError(t, err)
	assert.Equal(t, info, opened)
	require.NoError(t, unix.Close(root))
	_, err = openHandle(fd, info.ID, FirstFreeObjectID, generation+1)
	require.ErrorIs(t, err, unix.ESTALE, "it is looked at")

	_, err = inodeGeneration(fd, info.ID, FirstFreeObjectID+1)
	require.ErrorIs(t, err, unix.ENOENT)
	_, err = OpenRoot(fd, info.ID+1)
	require.ErrorIs(t, err, unix.ESTALE)
}
