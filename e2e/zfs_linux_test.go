package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// assertNothingLeftOnZFS asserts that below the dataset mounted at root there are no datasets but those of
// the layers, and no snapshots but those that seal them, and that nothing is mounted.
func assertNothingLeftOnZFS(t *testing.T, root string, ids []string) {
	t.Helper()
	out, err := exec.Command("zfs", "list", "-H", "-o", "name", "-t", "filesystem,snapshot", "-r", "-d", "2", root).Output()
	require.NoError(t, err)
	names := strings.Fields(string(out))
	require.NotEmpty(t, names)
	for _, name := range names[1:] {
		name = strings.TrimPrefix(name, names[0]+"/")
		assert.Contains(t, ids, strings.TrimSuffix(name, "@layer"), name)
	}
	for _, dir := range []string{"graph", "views"} {
		mounts, err := os.ReadFile("/proc/self/mounts")
		require.NoError(t, err)
		assert.NotContains(t, string(mounts), " "+filepath.Join(root, "zfs", dir)+"/")
	}
	intents, err := os.ReadDir(filepath.Join(root, "zfs", "intents"))
	require.NoError(t, err)
	assert.Empty(t, intents)
}
