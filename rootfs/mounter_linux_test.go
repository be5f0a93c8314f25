package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Mounts made before one of the mounts failed do not stay.
func TestHostMounter(t *testing.T) {
	h := newHost(t)
	mounts, err := h.real.Prepare(t.Context(), "active", "")
	require.NoError(t, err)
	dir := t.TempDir()
	bad := mount.Mount{Type: "bind", Source: filepath.Join(dir, "nothing"), Options: []string{"bind"}}
	assert.Error(t, HostMounter{}.Mount(dir, mounts[0], bad))
	assert.NoError(t, os.Remove(dir), "nothing is mounted")
	assert.NoError(t, HostMounter{}.Unmount(dir), "no directory")
}
