package daemons

import (
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestSetupBuildKit: BuildKit reads in the file that setup writes that it is to build on Cowshed.
func TestSetupBuildKit(t *testing.T) {
	testfs.CheckLeaks(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	c := h.StartCowshed("containerd")
	file := filepath.Join(h.Dir, "buildkitd.toml")
	s := setUp{t: t, c: c, args: []string{"--containerd-config", filepath.Join(h.Dir, "config.toml"), "--buildkit-config", file}}
	s.run("containerd", "--apply")
	s.run("buildkit", "--apply")
	read, err := config.LoadFile(file)
	require.NoError(t, err)
	require.NotNil(t, read.Workers.OCI.Enabled)
	assert.False(t, *read.Workers.OCI.Enabled)
	require.NotNil(t, read.Workers.Containerd.Enabled)
	assert.True(t, *read.Workers.Containerd.Enabled)
	assert.Equal(t, harness.CowshedSnapshotter, read.Workers.Containerd.Snapshotter)
	assert.Equal(t, h.ContainerdAddress("containerd"), read.Workers.Containerd.Address)
	s.run("buildkit", "--undo")
	assert.NoFileExists(t, file)
}
