package layertar

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// timesSet applies a layer with files, links and directories of those times, and returns their times then, and the
// log.
func timesSet(t *testing.T, dir string, wanted time.Time) (got []int64, log string) {
	t.Helper()
	var out bytes.Buffer
	apply(t, dir, tarOf(t, folder("d").time(wanted), file("d/f", "data").time(wanted), fifo("d/p").time(wanted),
		file("g", "").time(time.Unix(1_500_000_000, 0))), ApplyOptions{Logger: slog.New(slog.NewTextHandler(&out, nil))})
	for _, name := range []string{"d", "d/f", "d/p"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		require.NoError(t, err)
		got = append(got, info.ModTime().Unix())
	}
	return got, out.String()
}

// TestApplyTimesOutOfBounds: times that are replaced are not replaced silently.
func TestApplyTimesOutOfBounds(t *testing.T) {
	for name, wanted := range map[string]time.Time{
		"before 1970": time.Unix(-1, 0),
		"after 2262":  time.Unix(1<<34, 0),
	} {
		t.Run(name, func(t *testing.T) {
			got, log := timesSet(t, t.TempDir(), wanted)
			assert.Equal(t, []int64{0, 0, 0}, got)
			assert.Contains(t, log, "count=3")
			assert.Contains(t, log, `first="\"d/\""`)
		})
	}
	got, log := timesSet(t, testfs.Btrfs(t), time.Unix(1<<33, 0))
	assert.Equal(t, []int64{1 << 33, 1 << 33, 1 << 33}, got)
	assert.Empty(t, log)
}

// TestApplyTimesThatTheFilesystemCannotHold uses ext4 with small inodes, whose times end in 2038.
func TestApplyTimesThatTheFilesystemCannotHold(t *testing.T) {
	testfs.Root(t)
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	for _, command := range [][]string{
		{"truncate", "--size=8M", image},
		{"mkfs.ext4", "-q", "-I", "128", image},
		{"mount", "-o", "loop", image, dir},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", command, out)
	}
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	got, log := timesSet(t, dir, time.Unix(1<<33, 0))
	assert.Less(t, got[0], int64(1)<<33)
	assert.Contains(t, log, "count=3")
}
