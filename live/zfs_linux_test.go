package live_test

import (
	"io"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/zfs"
)

func newZFSHome(t *testing.T) home {
	t.Helper()
	return openZFSHome(t, cowcommon.DefaultRoot)
}

func openZFSHome(t *testing.T, style cowcommon.RootStyle) home {
	t.Helper()
	dataset, mnt := testfs.ZFS(t)
	return openDatasetHome(t, dataset, mnt, style)
}

// openDatasetHome makes a home below a dataset.
func openDatasetHome(t *testing.T, dataset, mnt string, style cowcommon.RootStyle) home {
	t.Helper()
	require.NoError(t, exec.Command("zfs", "create", dataset+"/home").Run())
	dir := filepath.Join(mnt, "home")
	backend, err := zfs.Open(t.Context(), dir, dataset+"/home", zfs.Options{})
	require.NoError(t, err)
	return newStyledHome(t, backend, dir, style, filepath.Join(mnt, "live"))
}

// TestZFS runs the tests on ZFS that are independent of the filesystem.
func TestZFS(t *testing.T) {
	testfs.Zpool(t)
	for name, test := range map[string]func(t *testing.T, h home){
		"fork": testFork, "fork rolled back": testForkRolledBack, "snapshots": testSnapshots, "rollback": testRollback, "merge": testMerge, "still": testStill,
	} {
		t.Run(name, func(t *testing.T) { test(t, newZFSHome(t)) })
		t.Run(name+" shared", func(t *testing.T) { test(t, openZFSHome(t, cowcommon.SharedRoot)) })
	}
	for name, test := range map[string]func(t *testing.T, from, to home){
		"send and receive": testSendReceive, "bad receive": testBadReceive, "native stream": testNativeStream, "early end": testEarlyEnd, "from moment": testSendFromMoment,
	} {
		t.Run(name, func(t *testing.T) { test(t, newZFSHome(t), newZFSHome(t)) })
	}
	shared := func(t *testing.T) home { return openZFSHome(t, cowcommon.SharedRoot) }
	kinds := map[string]crashing{"zfs": {newZFSHome, byClones}, "zfs shared": {shared, byClones}}
	for name, test := range map[string]func(t *testing.T, kinds map[string]crashing){
		"fork crash": testForkCrash, "rollback crash": testRollbackCrash, "merge crash": testMergeCrash,
	} {
		t.Run(name, func(t *testing.T) { test(t, kinds) })
	}
}

// TestFullZFS is TestFull where a pool is full, and where the quota of the dataset that holds all is reached.
func TestFullZFS(t *testing.T) {
	testfs.Zpool(t)
	for name, by := range testfs.Bounds() {
		for suffix, style := range map[string]cowcommon.RootStyle{"": cowcommon.DefaultRoot, " shared": cowcommon.SharedRoot} {
			if style == cowcommon.SharedRoot && !testfs.Long() {
				continue
			}
			t.Run(name+suffix, func(t *testing.T) {
				dataset, mnt := testfs.SmallZFS(t, 64<<20, by)
				testFull(t, openDatasetHome(t, dataset, mnt, style))
			})
		}
	}
}

// TestZFSUnrelatedBase: a dataset of ZFS is sent from those only that it was made from.
func TestZFSUnrelatedBase(t *testing.T) {
	h, ctx := newZFSHome(t), t.Context()
	h.create("web")
	m, err := h.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	h.put("web", "file", "1")
	_, err = h.Send(ctx, io.Discard, "web", live.SendOptions{From: m.Volume})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}
