package harness

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestLeft leaves one of each kind of thing, sees it listed, and takes it away.
func TestLeft(t *testing.T) {
	testfs.Root(t)
	for _, tc := range []struct {
		name string
		says string
		// leave leaves something, which release takes away where checkLeft cannot.
		leave func(t *testing.T, h *Host) (release func())
	}{
		{"process", "process", func(t *testing.T, h *Host) func() {
			cmd := exec.Command("sleep", "600")
			cmd.Dir = h.Dir
			require.NoError(t, cmd.Start())
			go func() { _ = cmd.Wait() }() // it is killed
			return func() {}
		}},
		{"mount", "mount on", func(t *testing.T, h *Host) func() {
			dir := h.dir(h.Data, "mount")
			require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, ""))
			return func() {}
		}},
		{"cgroup", "cgroup", func(t *testing.T, h *Host) func() {
			require.NoError(t, os.MkdirAll(cgroupDir(t, h.Cgroup, "container"), 0o755))
			return func() {}
		}},
		{"loop device", "loop device of", func(t *testing.T, h *Host) func() {
			image := filepath.Join(h.Dir, "image")
			require.NoError(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
			out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
			require.NoError(t, err, string(out))
			return func() {
				require.NoError(t, exec.Command("losetup", "--detach", strings.TrimSpace(string(out))).Run())
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := NewHost(t, t.TempDir())
			assert.Empty(t, h.left())
			release := tc.leave(t, h)
			left := h.left()
			require.Len(t, left, 1)
			assert.Contains(t, left[0], tc.says)
			h.takeAway()
			release()
			// The check at the end of the test finds nothing.
		})
	}
}

// cgroupDir is where a cgroup is made in one hierarchy, or in the only one.
func cgroupDir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
		dir = filepath.Join(dir, "pids")
	}
	return filepath.Join(append([]string{dir}, elem...)...)
}

// TestDaemon stops, kills and starts a daemon.
func TestDaemon(t *testing.T) {
	h := NewHost(t, t.TempDir())
	ready := filepath.Join(h.Dir, "ready")
	d := h.Start(Spec{
		Name:    "daemon",
		Program: "/bin/sh",
		Args:    []string{"-c", `trap "echo stopped; exit 0" TERM; echo running; : >"$0"; while :; do sleep 0.01; done`, ready},
		Env:     []string{path()},
		Ready:   exists(ready),
	})
	first := d.Pid()
	require.NoError(t, os.Remove(ready))
	d.Restart()
	assert.NotEqual(t, first, d.Pid())
	assert.Equal(t, 1, strings.Count(d.Log(), "stopped\n"))
	require.NoError(t, os.Remove(ready))
	d.Kill()
	d.Start()
	assert.Equal(t, 1, strings.Count(d.Log(), "stopped\n"))
	assert.Equal(t, 3, strings.Count(d.Log(), "running\n"))
}

func exists(file string) func(context.Context) error {
	return func(context.Context) error {
		_, err := os.Stat(file)
		return err
	}
}
