package snapshotter

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
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
		"commit mounted":     func(t *testing.T, fs filesystem) { checkSourceIsRetained(testCommitMounted(t, fs)) },
		"interrupted commit": func(t *testing.T, fs filesystem) { checkSourceIsRetained(testRecoverInterruptedCommit(t, fs)) },
		"resolve":            testResolveChangedOptions,
		"compare":            testCompareAgreesWithContainerd,
		"create diff":        testCreateDiff,
		"limit below held":   testLimitBelowHeldZFS,
		"lost metadata":      testLostMetadata,
		"older metadata":     testRolledBackMetadata,
		"apply taken back":   func(t *testing.T, fs filesystem) { testApplyTakenBack(t, fs, "image", layertar.Gzip) },
	} {
		t.Run(name, func(t *testing.T) { test(t, onZFS) })
	}
	if testfs.Long() {
		t.Run("older volumes", func(t *testing.T) { testRolledBackVolumes(t, onZFS) })
		t.Run("other metadata", func(t *testing.T) { testOtherMetadata(t, onZFS) })
	}
}

// checkSourceIsRetained: the volume from which the image's was cloned goes as on btrfs. ZFS keeps its data, which goes with
// the image.
func checkSourceIsRetained(h *host) {
	h.t.Helper()
	assert.Equal(h.t, []string{h.volume("image")}, h.volumes())
	check := func(want int) {
		retainer, ok := cowcommon.As[cowcommon.Retainer](h.backend)
		require.True(h.t, ok)
		retained, err := retainer.Retained(h.t.Context())
		require.NoError(h.t, err)
		assert.Equal(h.t, want, retained.Volumes)
	}
	check(1)
	require.NoError(h.t, h.restart(nil))
	assert.Equal(h.t, []string{h.volume("image")}, h.volumes())
	check(1)
	require.NoError(h.t, h.Remove(h.t.Context(), "image"))
	require.NoError(h.t, h.Cleanup(h.t.Context()))
	assert.Empty(h.t, h.volumes())
	check(0)
}

// testLimitBelowHeldZFS: ZFS itself refuses a limit below the present size, which therefore stays.
func testLimitBelowHeldZFS(t *testing.T, fs filesystem) {
	h := testUpdateBelowHeld(t, fs)
	require.ErrorIs(t, h.SetLimit(t.Context(), heldKey, 4*mib), errdefs.ErrFailedPrecondition)
	assert.EqualValues(t, 24*mib, h.currentLimit(heldKey))
}

func TestSnapshotterSuiteZFS(t *testing.T) {
	testfs.Zpool(t)
	t.Run("snapshot", func(t *testing.T) { runSuite(t, onZFS, byProxy, Options{}) })
	t.Run("shared", func(t *testing.T) { runSuite(t, onZFS, byProxy, Options{RootStyle: cowcommon.SharedRoot}) })
}

// TestFullZFS is TestFullFilesystem where a pool is full, and where the quota of the dataset that holds all is reached.
func TestFullZFS(t *testing.T) {
	testfs.Zpool(t)
	for name, by := range testfs.Bounds() {
		for _, level := range fillLevels() {
			t.Run(fmt.Sprintf("%s, %d", name, level), func(t *testing.T) {
				testFull(t, onSmallZFS(64*mib, by), fullTest{level: level, many: 6, reserve: true})
			})
		}
	}
}

// TestOfferZFS adopts a dataset of another program, which is then settled and destroyed.
func TestOfferZFS(t *testing.T) {
	testfs.Zpool(t)
	h := newHostOn(t, onZFS, Options{})
	conn, stop, err := serve(t.TempDir(), h.Snapshotter, nil)
	require.NoError(t, err)
	t.Cleanup(stop)
	zfs := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("zfs", args...).CombinedOutput()
		require.NoError(t, err, "zfs %q: %s", args, out)
		return strings.TrimSpace(string(out))
	}
	others := zfs("list", "-Ho", "name", h.mnt) + "/others"
	zfs("create", others)
	zfs("create", others+"/source")
	require.NoError(t, os.WriteFile(filepath.Join(h.mnt, "others/source/foreign"), []byte("foreign"), 0o600))

	offers, ctx := OffersClient{conn}, t.Context()
	require.NoError(t, offers.Offer(ctx, "moby", "key", others+"/source"))
	_, err = h.Prepare(ctx, "moby/1/key", "", label(AdoptLabel, Offered))
	require.NoError(t, err)
	require.NoError(t, h.Commit(ctx, "moby/2/image", "moby/1/key"))
	require.NoError(t, offers.Settle(ctx, "moby", "image"))
	zfs("destroy", "-r", others)
	h.prepare("moby/3/container", "moby/2/image")
	assert.Equal(t, "foreign", h.content("moby/3/container", "foreign"))
}
