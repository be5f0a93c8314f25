package overlaysource

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestTree: all directories of a subvolume are in one tree, by whichever path and descriptor. All other subvolumes are others.
func TestTree(t *testing.T) {
	at := func(path string) Tree {
		t.Helper()
		tree, err := TreeAt(path)
		require.NoError(t, err)
		require.NotZero(t, tree)
		file, err := os.Open(path)
		require.NoError(t, err)
		defer file.Close()
		byFile, err := TreeOf(file)
		require.NoError(t, err)
		assert.Equal(t, tree, byFile)
		return tree
	}
	subvolume := func(command, path string, from ...string) Tree {
		t.Helper()
		arguments := append([]string{"subvolume", command}, append(from, path)...)
		out, err := exec.CommandContext(t.Context(), "btrfs", arguments...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return at(path)
	}
	a, b := testfs.Btrfs(t), testfs.Btrfs(t)
	webA, webB := subvolume("create", a+"/web"), subvolume("create", b+"/web")
	trees := map[Tree]bool{at(a): true, at(b): true, webA: true, webB: true, subvolume("snapshot", a+"/copy", a+"/web"): true}
	assert.Len(t, trees, 5)

	require.NoError(t, os.Mkdir(a+"/web/inside", 0o700))
	require.NoError(t, os.Rename(a+"/web", a+"/renamed"))
	other := t.TempDir()
	require.NoError(t, unix.Mount(a+"/renamed", other, "", unix.MS_BIND, ""))
	defer func() { assert.NoError(t, unix.Unmount(other, 0)) }()
	assert.Equal(t, webA, at(a+"/renamed/inside"))
	assert.Equal(t, webA, at(other))

	_, err := TreeAt(a + "/web")
	require.ErrorIs(t, err, os.ErrNotExist)
}
