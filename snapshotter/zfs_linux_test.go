package snapshotter

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestZFS runs those tests whose outcome depends on the filesystem.
func TestZFS(t *testing.T) {
	testfs.Zpool(t)
	for name, test := range map[string]func(t *testing.T, fs filesystem){
		"limits":             testLimits,
		"view":               testView,
		"prepare":            testPrepareIsWritable,
		"remove and cleanup": func(t *testing.T, fs filesystem) { testRemoveAndCleanup(t, fs) },
		"commit":             testCommitSeals,
		"commit mounted":     func(t *testing.T, fs filesystem) { checkSourceGoesLast(testCommitMounted(t, fs)) },
		"interrupted commit": func(t *testing.T, fs filesystem) { checkSourceGoesLast(testRecoverInterruptedCommit(t, fs)) },
		"resolve":            testResolveChangedOptions,
		"compare":            testCompareAgreesWithContainerd,
		"create diff":        testCreateDiff,
	} {
		t.Run(name, func(t *testing.T) { test(t, onZFS) })
	}
}

// checkSourceGoesLast: on ZFS the volume from which the image's was cloned, which no snapshot names any more,
// stays as long as that of the image, and goes with it.
func checkSourceGoesLast(h *host) {
	h.t.Helper()
	assert.Len(h.t, h.volumes(), 2)
	require.NoError(h.t, h.restart(nil))
	assert.Len(h.t, h.volumes(), 2)
	require.NoError(h.t, h.Remove(h.t.Context(), "image"))
	require.NoError(h.t, h.Cleanup(h.t.Context()))
	assert.Empty(h.t, h.volumes())
}

func TestSnapshotterSuiteZFS(t *testing.T) {
	testfs.Zpool(t)
	runSuite(t, onZFS, byProxy)
}
