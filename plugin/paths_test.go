package plugin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNames(t *testing.T) {
	path, err := SocketPath("cowshed")
	require.NoError(t, err)
	assert.Equal(t, filepath.FromSlash("/run/docker/plugins/cowshed.sock"), path)
	for _, name := range []string{"", ".", "..", "a/b", "/a", "a:b", "-a", ".a", "a b", "btrfs", "zfs", "overlay2", "vfs"} {
		_, err := SocketPath(name)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", name)
		_, err = WriteSpec(t.TempDir(), name, "/run/x.sock")
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%q", name)
	}
}

func TestWriteSpec(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "docker", "plugins")
	socket := filepath.Join(t.TempDir(), "p.sock")
	for range 2 {
		path, err := WriteSpec(dir, "cowshed", socket)
		require.NoError(t, err)
		assert.Equal(t, filepath.Join(dir, "cowshed.spec"), path)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, "unix://"+socket+"\n", string(text))
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1)
	_, err = WriteSpec(dir, "cowshed", "p.sock")
	assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}
