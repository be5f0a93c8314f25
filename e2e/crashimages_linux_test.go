package e2e

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

const (
	loggedSize        = 512 << 20
	crashStates       = 75 // of each quota mode, in a short run
	sharedCrashStates = 15 // with shared roots, likewise
)

// TestCrashImages runs a script of all operations on a disk that logs all writes. It recovers from the disk's state
// after each flush: everything that was acknowledged by then is there, and nothing else.
func TestCrashImages(t *testing.T) {
	t.Parallel()
	inEachSystem(t, func(t *testing.T, s system) {
		if s.driver != "btrfs" || s.countsImage() {
			return // ZFS: TestZFSCrashImages. The scope of limits does not matter here.
		}
		cutPowerOften(t, s, crashStates)
	})
}

// TestCrashImagesShared is TestCrashImages with shared roots.
func TestCrashImagesShared(t *testing.T) {
	t.Parallel()
	inEachShared(t, func(t *testing.T, s system) {
		if s.driver == "btrfs" { // ZFS: TestZFSCrashImages
			cutPowerOften(t, s, sharedCrashStates)
		}
	})
}

// cutPowerOften is TestCrashImages of one system, with so many states in a short run.
func cutPowerOften(t *testing.T, s system, states int) {
	t.Helper()
	var opts []testfs.BtrfsOption
	if s.name == "btrfs-classic" {
		opts = append(opts, testfs.WithClassicQuota())
	}
	mnt, marks, finish := testfs.LoggedBtrfs(t, append(opts, testfs.WithSize(loggedSize))...)
	steps, keeps := script(s, 2)
	runScript(t, s, mnt, steps, keeps, marks)
	log, image := finish()
	checked := checkBtrfs(t, image)
	if !checked {
		require.Contains(t, []string{"btrfs-simple", "btrfs-shared"}, s.name, "btrfs check before 6.7 does not know simple quotas, and must know the rest")
	}
	cuts := chooseCuts(t, log, loggedSize, states)
	replay(t, log, 0, loggedSize, cuts, func(c cut, image string) {
		ok := t.Run(c.name(steps), func(t *testing.T) {
			assert.True(t, !checked || checkBtrfs(t, image), "as it is after the power cut")
			mnt, unmount := testfs.MountBtrfs(t, image)
			c.check(t, s, mnt, steps, keeps)
			scrubBtrfs(t, mnt)
			unmount()
			assert.True(t, !checked || checkBtrfs(t, image), "after recovery")
		})
		require.True(t, ok)
	})
}

// checkBtrfs reports whether btrfs check finds nothing.
func checkBtrfs(t *testing.T, image string) bool {
	t.Helper()
	out, err := exec.Command("btrfs", "check", "--readonly", image).CombinedOutput()
	if err != nil {
		t.Logf("btrfs check: %v: %s", err, out)
	}
	return err == nil
}

// scrubBtrfs asserts that the kernel finds all that the filesystem holds as it was written.
func scrubBtrfs(t *testing.T, mnt string) {
	t.Helper()
	out, err := exec.Command("btrfs", "scrub", "start", "-B", mnt).CombinedOutput() // it fails if there are errors
	assert.NoError(t, err, "btrfs scrub: %s", out)
}
