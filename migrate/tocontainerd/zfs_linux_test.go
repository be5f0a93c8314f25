package tocontainerd

import (
	"os/exec"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

// TestZFSIsCopy: a volume is known to be a clone of the dataset that the source has opened.
func TestZFSIsCopy(t *testing.T) {
	root, _ := testfs.ZFS(t)
	for _, args := range [][]string{
		{"create", root + "/source"}, {"create", root + "/source2"}, {"snapshot", root + "/source@s"}, {"clone", root + "/source@s", root + "/clone"},
	} {
		out, err := exec.Command("zfs", args...).CombinedOutput()
		require.NoError(t, err, "zfs %q: %s", args, out)
	}
	for of, want := range map[string]bool{"/source": true, "/source2": false, "/sourc": false, "/clone": false} {
		is, err := isCopy([]mount.Mount{{Type: "zfs", Source: root + "/clone"}}, nil, &migrate.Content{Volume: root + of})
		require.NoError(t, err)
		assert.Equal(t, want, is, of)
	}
	_, err := isCopy([]mount.Mount{{Type: "zfs", Source: root + "/none"}}, nil, &migrate.Content{Volume: root + "/source"})
	require.ErrorIs(t, err, unix.ENOENT)
}
