// Package sandbox tests examples/sandbox with a real runc.
package sandbox

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// sandbox is the program with a root filesystem, and a btrfs for its layers.
type sandbox struct {
	program, path, root, mnt string
}

func newSandbox(t *testing.T) sandbox {
	t.Helper()
	programs := harness.FindPrograms(t)
	dir := t.TempDir()
	s := sandbox{program: filepath.Join(dir, "sandbox"), root: filepath.Join(dir, "root"), mnt: testfs.Btrfs(t)}
	s.path = "PATH=" + programs.Built + ":" + os.Getenv("PATH")
	build := exec.Command("go", "build", "-o", s.program, "./examples/sandbox")
	build.Dir = "../../.."
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	busybox, err := programs.Busybox()
	require.NoError(t, err)
	data, err := os.ReadFile(busybox)
	require.NoError(t, err)
	for _, name := range []string{"bin", "dev", "etc", "proc", "sys"} {
		require.NoError(t, os.MkdirAll(filepath.Join(s.root, name), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(s.root, "bin", "busybox"), data, 0o755))
	require.NoError(t, os.Symlink("busybox", filepath.Join(s.root, "bin", "sh")))
	require.NoError(t, os.Symlink("busybox", filepath.Join(s.root, "bin", "sleep")))
	return s
}

// command is a run of the program. It is killed if it hangs.
func (s sandbox) command(t *testing.T, script string) (cmd *exec.Cmd, out *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testfs.Patience)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, s.program, "-root", s.root, "-dir", s.mnt, "-forks", "4", "-jobs", "2", "-limit", "4M", "sh", "-ec", script)
	cmd.Env = append(os.Environ(), s.path)
	out = new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// assertGone asserts that neither files nor processes nor mounts are left.
func (s sandbox) assertGone(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(s.mnt)
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.Empty(t, testfs.Subvolumes(t, s.mnt))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	assert.NotContains(t, string(mounts), s.mnt+"/")
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, file := range commands {
		command, err := os.ReadFile(file)
		assert.False(t, err == nil && strings.Contains(string(command), s.mnt), "%s: %q", file, command)
	}
}

func TestRunc(t *testing.T) {
	s := newSandbox(t)
	cmd, out := s.command(t, `echo $$ >/etc/first; test "$SANDBOX_FORK" != 4; echo "$SANDBOX_FORK"`)
	require.NoError(t, cmd.Run(), out.String())
	for _, want := range []string{"4 commands by runc, 2 at once; 1 failed", "fork-003 with score 3: 2 changes"} {
		assert.Contains(t, out.String(), want)
	}
	s.assertGone(t)
}

func TestRuncInterrupt(t *testing.T) {
	s := newSandbox(t)
	cmd, out := s.command(t, "sleep 1234 & echo >/etc/begun; sleep 1234")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	require.Eventually(t, func() bool {
		begun, err := filepath.Glob(filepath.Join(s.mnt, "sandbox-*", "btrfs", "subvolumes", "*", "etc", "begun"))
		return err == nil && len(begun) == 2
	}, testfs.Patience, 20*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.Error(t, cmd.Wait())
	assert.Equal(t, 1, cmd.ProcessState.ExitCode(), out.String())
	assert.Contains(t, out.String(), "run: context canceled")
	s.assertGone(t)
}
