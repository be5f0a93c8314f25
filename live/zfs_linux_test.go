package live_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/zfs"
)

func newZFSHome(t *testing.T) home {
	t.Helper()
	dataset, mnt := testfs.ZFS(t)
	require.NoError(t, exec.Command("zfs", "create", dataset+"/home").Run())
	backend, err := zfs.Open(t.Context(), filepath.Join(mnt, "home"), dataset+"/home", zfs.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, backend.Close()) })
	h := home{t: t, backend: backend, records: filepath.Join(mnt, "live")}
	return h.over(backend)
}

// TestZFS runs the tests on ZFS that are independent of the filesystem.
func TestZFS(t *testing.T) {
	testfs.Zpool(t)
	for name, test := range map[string]func(t *testing.T, h home){
		"fork": testFork, "fork rolled back": testForkRolledBack, "snapshots": testSnapshots, "rollback": testRollback, "merge": testMerge, "still": testStill,
	} {
		t.Run(name, func(t *testing.T) { test(t, newZFSHome(t)) })
	}
	kinds := map[string]crashing{"zfs": {newZFSHome, byClones}}
	for name, test := range map[string]func(t *testing.T, kinds map[string]crashing){
		"fork crash": testForkCrash, "rollback crash": testRollbackCrash, "merge crash": testMergeCrash,
	} {
		t.Run(name, func(t *testing.T) { test(t, kinds) })
	}
}
