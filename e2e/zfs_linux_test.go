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

// assertNothingLeftOnZFS asserts that below the dataset mounted at root there are only the datasets of the layers, and
// those of removed layers with clones. The only snapshots are those that seal them or that another was cloned from,
// and nothing is mounted.
func assertNothingLeftOnZFS(t *testing.T, root string, ids []string) {
	t.Helper()
	out, err := exec.Command("zfs", "list", "-H", "-o", "name,clones", "-t", "filesystem,snapshot", "-r", root).Output()
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	dataset, _, _ := strings.Cut(lines[0], "\t")
	require.NotEmpty(t, dataset)
	const removed = "cowshed removed"
	needed := make(map[string]bool) // datasets of removed layers
	holdsRemoved := false
	for _, line := range lines[1:] {
		name, clones, _ := strings.Cut(strings.TrimPrefix(line, dataset+"/"), "\t")
		id, snapshot, _ := strings.Cut(name, "@")
		if strings.HasPrefix(id, removed) {
			if id == removed {
				holdsRemoved = true
			} else {
				needed[id] = needed[id] || snapshot != "" && clones != "" && clones != "-"
			}
			continue
		}
		assert.Contains(t, ids, id, name)
		assert.True(t, snapshot == "" || snapshot == "layer" || takenForClone(name, clones), name)
	}
	for id, is := range needed {
		assert.True(t, is, "%s has clones", id)
	}
	assert.True(t, !holdsRemoved || len(needed) > 0, "there is a removed layer in %s", removed)
	for _, dir := range []string{"graph", "views"} {
		mounts, err := os.ReadFile("/proc/self/mounts")
		require.NoError(t, err)
		assert.NotContains(t, string(mounts), " "+filepath.Join(root, "zfs", dir)+"/")
	}
	intents, err := os.ReadDir(filepath.Join(root, "zfs", "intents"))
	require.NoError(t, err)
	assert.Empty(t, intents)
}

// takenForClone reports whether a snapshot of a volume in use was taken for a clone that is there, which needs it. The
// arguments are columns of zfs list.
func takenForClone(name, clones string) bool {
	_, snapshot, _ := strings.Cut(name, "@")
	return strings.HasPrefix(snapshot, "cowshed-clone-") && clones != "" && clones != "-"
}
