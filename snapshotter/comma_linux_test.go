package snapshotter

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestCommaInRoot: a home whose volumes nobody could mount is refused at the start, and by the snapshotter alone.
func TestCommaInRoot(t *testing.T) {
	home := filepath.Join(testfs.Btrfs(t), "with,comma", "home")
	require.NoError(t, os.Mkdir(filepath.Dir(home), 0o700))
	backend, err := btrfs.Open(t.Context(), home, btrfs.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, backend.Close()) })
	require.NoError(t, backend.Create(t.Context(), "volume", cowcommon.VolumeOptions{}))
	_, err = New(t.Context(), t.TempDir(), backend, Options{})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "/with,comma/home/subvolumes, has a comma")
}
