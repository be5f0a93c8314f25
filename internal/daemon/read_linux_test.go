package daemon

import (
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/plugin"
	"github.com/cowshed/cowshed/quota"
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

// TestExamine: lost limits of containerd's volumes and of the plugin's are found, without a daemon or beside one.
func TestExamine(t *testing.T) {
	mnt := testfs.Btrfs(t)
	c := Default()
	c.Root, c.State, c.DockerPlugin = filepath.Join(mnt, "root"), t.TempDir(), "plugged"
	log := slog.New(slog.DiscardHandler)
	assert.Empty(t, Examine(t.Context(), c, log), "nothing is there")

	dirs := []string{filepath.Join(c.Root, containerdDir), filepath.Join(mnt, "docker")}
	for _, dir := range dirs {
		b, err := btrfs.Open(t.Context(), filepath.Join(dir, "btrfs"), btrfs.Options{})
		require.NoError(t, err)
		defer func() { assert.NoError(t, b.Close()) }() // as of a daemon
		require.NoError(t, b.Create(t.Context(), "layer", cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 10 << 20}}))
	}
	state, err := json.Marshal(plugin.InitRequest{Home: dirs[1]})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(c.pluginState(), state, 0o600))
	for _, verdict := range []cowcommon.Verdict{cowcommon.OK, cowcommon.Fail} {
		if verdict == cowcommon.Fail {
			require.NoError(t, testfs.Run(t, exec.Command("btrfs", "quota", "disable", mnt)))
		}
		var found []string
		for _, f := range Examine(t.Context(), c, log) {
			if f.Check == "quota" {
				assert.Equal(t, verdict, f.Verdict, "%v", f)
				found = append(found, f.Detail)
			}
		}
		require.Len(t, found, 2)
		for i, dir := range dirs {
			assert.Contains(t, found[i], dir+": ")
			if verdict == cowcommon.Fail {
				assert.Contains(t, found[i], "limits are lost")
			}
		}
	}
}
