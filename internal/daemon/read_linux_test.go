package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestOpenToRead: the driver that has volumes is opened, as by all who open a root.
func TestOpenToRead(t *testing.T) {
	registerAnother()
	c := Default()
	c.Root = filepath.Join(testfs.Btrfs(t), "root")
	log := slog.New(slog.DiscardHandler)
	refused := func(why string) {
		t.Helper()
		_, err := OpenToRead(t.Context(), c, log)
		assert.True(t, errdefs.IsNotFound(err), "%s: %v", why, err)
	}
	refused("no root")
	dir := filepath.Join(c.Root, containerdDir)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "another"), 0o755))
	refused("an empty directory of a driver")

	written, err := openDriver(t.Context(), dir, "btrfs", func(string) []string { return nil }, user.IdentityMapping{}, log)
	require.NoError(t, err)
	require.NoError(t, written.Create("layer", "", nil))
	require.NoError(t, written.Cleanup())
	d, err := OpenToRead(t.Context(), c, log)
	require.NoError(t, err, "the empty directory of another driver comes first by name")
	assert.Equal(t, "btrfs", d.String())
	assert.True(t, d.Exists("layer"))
	require.ErrorIs(t, d.Create("new", "", nil), cowcommon.ErrReadOnly)
	require.NoError(t, d.Cleanup())

	c.Driver = "another"
	refused("the configured driver has none")
}
