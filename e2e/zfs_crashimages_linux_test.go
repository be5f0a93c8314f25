package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// scripts/test-zfs.sh runs TestZFSCrashScript in a test machine that logs the writes to the disk of its pool. Then it
// runs TestZFSCrashImages in a machine with a disk of that size and with the log. It does the same with shared roots.
const (
	crashScriptEnv = "COWSHED_TEST_CRASH_SCRIPT" // set: TestZFSCrashScript runs
	crashLogEnv    = "COWSHED_TEST_CRASH_LOG"    // the log
	crashPartEnv   = "COWSHED_TEST_CRASH_PART"   // which of the parts of the log's states, such as 1/2; set: that part only

	zfsCrashStates = 150     // in a short run
	zfsMarks       = 1 << 19 // where marks are: before the partition that holds the pool
	zfsRounds      = 1
)

// TestZFSCrashScript is not a test: it writes the log that TestZFSCrashImages replays.
func TestZFSCrashScript(t *testing.T) { zfsCrashScript(t, systems()[0]) }

// TestZFSCrashScriptShared is TestZFSCrashScript with shared roots.
func TestZFSCrashScriptShared(t *testing.T) { zfsCrashScript(t, sharedSystems()[0]) }

func zfsCrashScript(t *testing.T, s system) {
	t.Helper()
	if os.Getenv(crashScriptEnv) == "" {
		return
	}
	pool := testfs.Zpool(t)
	partition := poolPartition(t, pool)
	marks, err := testfs.OpenMarks(filepath.Join("/dev", filepath.Base(filepath.Dir(partition))), zfsMarks)
	require.NoError(t, err)
	for _, root := range []string{layersRoot, containersRoot} {
		zpool(t, "zfs", "create", pool+"/"+root)
	}
	steps, keeps := script(s, zfsRounds)
	runScript(t, s, filepath.Join("/", pool), steps, keeps, marks)
	require.NoError(t, marks.Close())
}

// TestZFSCrashImages is TestCrashImages for ZFS.
func TestZFSCrashImages(t *testing.T) { zfsCrashImages(t, systems()[0]) }

// TestZFSCrashImagesShared is TestZFSCrashImages with shared roots.
func TestZFSCrashImagesShared(t *testing.T) { zfsCrashImages(t, sharedSystems()[0]) }

func zfsCrashImages(t *testing.T, s system) {
	t.Helper()
	log := os.Getenv(crashLogEnv)
	if log == "" {
		return
	}
	pool := testfs.Zpool(t)
	t.Setenv("ZFS_VDEV_DEVID_OPT_OUT", "YES") // zpool would wait for udev, which need not be there
	from, size := partitionRange(t, poolPartition(t, pool))
	steps, keeps := script(s, zfsRounds)
	cuts := partOf(t, chooseCuts(t, log, zfsMarks, zfsCrashStates))
	replay(t, log, from, from+size, cuts, func(c cut, image string) {
		ok := t.Run(c.name(steps), func(t *testing.T) {
			const imported = "crashed"
			dir := t.TempDir()
			disk, detach := testfs.Loop(t, image)
			defer detach()
			zpool(t, "zpool", "import", "-d", disk, "-R", dir, "-o", "cachefile=none", pool, imported)
			defer zpool(t, "zpool", "export", "-f", imported)
			c.check(t, s, filepath.Join(dir, pool), steps, keeps)
			zpool(t, "zpool", "scrub", "-w", imported)
			assert.Contains(t, zpool(t, "zpool", "status", "-x", imported), "is healthy")
		})
		require.True(t, ok)
	})
}

// partOf returns every nth of the cuts, from the cut that the environment names.
func partOf(t *testing.T, cuts []cut) (part []cut) {
	t.Helper()
	first, parts := partFrom(t, crashPartEnv)
	for i := first; i < len(cuts); i += parts {
		part = append(part, cuts[i])
	}
	return part
}

// zpool runs a command of ZFS.
func zpool(t *testing.T, command string, args ...string) string {
	t.Helper()
	out, err := exec.Command(command, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", command, strings.Join(args, " "), out)
	return string(out)
}

// poolPartition is the directory in sysfs of the partition that holds the pool.
func poolPartition(t *testing.T, pool string) string {
	t.Helper()
	for _, field := range strings.Fields(zpool(t, "zpool", "list", "-vHPL", pool)) {
		if name, ok := strings.CutPrefix(field, "/dev/"); ok {
			dir, err := filepath.EvalSymlinks(filepath.Join("/sys/class/block", name))
			require.NoError(t, err)
			return dir
		}
	}
	require.Fail(t, "the pool has no disk")
	return ""
}

// partitionRange is where the partition is on its disk, in bytes.
func partitionRange(t *testing.T, partition string) (from, size int64) {
	t.Helper()
	read := func(name string) int64 {
		text, err := os.ReadFile(filepath.Join(partition, name))
		require.NoError(t, err)
		sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		require.NoError(t, err)
		return 512 * sectors
	}
	return read("start"), read("size")
}
