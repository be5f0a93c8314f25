package snapshotter

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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

// TestFullZFS: where the quota of the dataset that holds all is reached, snapshots can be removed, which makes room.
func TestFullZFS(t *testing.T) {
	testfs.Zpool(t)
	var dataset string
	h := newHostOn(t, func(t *testing.T) (string, openFunc) {
		mnt, open := onZFS(t)
		out, err := exec.Command("zfs", "list", "-Ho", "name", mnt).CombinedOutput()
		require.NoError(t, err, "%s", out)
		dataset = strings.TrimSpace(string(out))
		return mnt, open
	}, Options{})
	h.image("image")
	h.prepare("small", "image")
	h.prepare("large", "image")
	h.in("large", func(dir string) { require.NoError(t, fill(filepath.Join(dir, "large"), 8*mib)) })
	out, err := exec.Command("zfs", "set", "quota=64M", dataset).CombinedOutput()
	require.NoError(t, err, "%s", out)
	testfs.Fill(t, h.mnt, testfs.Data, 100)

	if _, err := h.Prepare(t.Context(), "new", "image"); err == nil {
		require.NoError(t, h.Remove(t.Context(), "new"))
	} else {
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		require.ErrorIs(t, err, unix.ENOSPC)
		assert.NotErrorIs(t, err, unix.EDQUOT, "it is no limit of a snapshot")
		assert.NotContains(t, h.keys(), "new")
	}
	require.NoError(t, h.restart(nil))
	require.NoError(t, h.Remove(t.Context(), "large"))
	require.NoError(t, h.Remove(t.Context(), "small"))
	require.NoError(t, h.Cleanup(t.Context()))
	require.NoError(t, os.RemoveAll(filepath.Join(h.mnt, "filler")))
	require.Eventually(t, func() bool {
		_, err := h.Prepare(t.Context(), "again", "image")
		return err == nil
	}, testfs.Patience, time.Second)
	assert.Empty(t, h.Lost())
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
