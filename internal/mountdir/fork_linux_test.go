package mountdir

import (
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestUnmountWhileForking: a mount is free as soon as this process has closed its files. Children that are on their way to
// their programs have them open too, for a moment.
func TestUnmountWhileForking(t *testing.T) {
	testfs.Root(t)
	var ended atomic.Bool
	var children sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		children.Go(func() {
			for !ended.Load() {
				assert.NoError(t, exec.CommandContext(t.Context(), "true").Run())
			}
		})
	}
	defer children.Wait()
	defer ended.Store(true)
	dir := t.TempDir()
	for range 100 {
		require.NoError(t, unix.Mount("test", dir, "tmpfs", 0, ""))
		var files []*os.File
		for range 40 {
			file, err := os.Open(dir)
			require.NoError(t, err)
			files = append(files, file)
		}
		runtime.Gosched()
		for _, file := range files {
			require.NoError(t, file.Close())
		}
		if err := Unmount(dir); !assert.NoError(t, err) {
			require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))
			return
		}
	}
}
