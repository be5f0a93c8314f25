package clients

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestSetupBuildKit: a buildkitd whose configuration was written by setup builds on Cowshed, and has no other worker.
func TestSetupBuildKit(t *testing.T) {
	testfs.CheckLeaks(t)
	built := programs(t, "buildkit")
	h := harness.NewHost(t, testfs.Btrfs(t))
	c := h.StartCowshed("containerd")
	dir := filepath.Join(h.Dir, "buildkitd")
	require.NoError(t, os.Mkdir(dir, 0o711))
	config := filepath.Join(dir, "buildkitd.toml")
	require.NoError(t, os.WriteFile(config, []byte("# mine\nroot = \""+filepath.Join(h.Data, "buildkitd")+"\"\n"), 0o644))
	h.StartContainerd("containerd", harness.ContainerdOptions{Configure: func(file string) {
		args := []string{"--apply", "--config", c.Config, "--containerd-config", file, "--buildkit-config", config}
		require.NoError(t, c.Command(bounded(t), append([]string{"setup", "containerd"}, args...)...))
		require.NoError(t, c.Command(bounded(t), append([]string{"setup", "buildkit"}, args...)...))
	}})
	socket := filepath.Join(dir, "b.sock")
	h.Start(harness.Spec{
		Name: "buildkitd", Program: filepath.Join(built, "buildkitd"),
		Args: []string{
			"--config", config, "--addr", "unix://" + socket, "--otel-socket-path", filepath.Join(dir, "otel.sock"),
			"--containerd-worker-net", "host", "--containerd-cni-config-path", filepath.Join(dir, "cni.json"),
		},
		Env:       []string{"PATH=" + h.Programs.Built + ":" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir},
		NoHandler: true,
		Ready: func(ctx context.Context) error {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", socket)
			if err != nil {
				return err
			}
			return conn.Close()
		},
	})
	k := buildKit{address: socket, buildctl: filepath.Join(built, "buildctl")}
	workers, err := exec.CommandContext(bounded(t), k.buildctl, "--addr", "unix://"+socket, "debug", "workers", "-v").CombinedOutput()
	require.NoError(t, err, "%s", workers)
	assert.Equal(t, 1, strings.Count(string(workers), "worker.executor:"), "%s", workers)
	assert.Regexp(t, `worker\.executor:\s+containerd`, string(workers))
	assert.Regexp(t, `worker\.snapshotter:\s+cowshed`, string(workers))
	k.build(t, "FROM scratch\nCOPY Dockerfile /\n")
	assert.NotEmpty(t, testfs.Subvolumes(t, h.Data))
	out, err := exec.CommandContext(bounded(t), k.buildctl, "--addr", "unix://"+socket, "prune", "--all").CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestSetupNerdctl: nerdctl takes its snapshotter from the file that setup writes.
func TestSetupNerdctl(t *testing.T) {
	testfs.CheckLeaks(t)
	nerdctl := filepath.Join(programs(t, "nerdctl"), "nerdctl")
	h := harness.NewHost(t, testfs.Btrfs(t))
	c := h.StartCowshed("containerd")
	config := filepath.Join(h.Dir, "nerdctl.toml")
	require.NoError(t, os.WriteFile(config, []byte("# mine\ndebug = false\n"), 0o644))
	args := []string{"--config", c.Config, "--nerdctl-config", config}
	containerd := h.StartContainerd("containerd", harness.ContainerdOptions{Configure: func(file string) {
		args = append(args, "--containerd-config", file)
		require.NoError(t, c.Command(bounded(t), append([]string{"setup", "containerd", "--apply"}, args...)...))
		require.NoError(t, c.Command(bounded(t), append([]string{"setup", "nerdctl", "--apply"}, args...)...))
	}})
	driver := func() string {
		cmd := exec.CommandContext(bounded(t), nerdctl, "--address", containerd.Address, "--data-root", filepath.Join(h.Dir, "nerdctl"), "info", "--format", "{{.Driver}}")
		cmd.Env = append(os.Environ(), "NERDCTL_TOML="+config)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, stderr.String())
		return strings.TrimSpace(string(out))
	}
	assert.Equal(t, "cowshed", driver())
	require.NoError(t, c.Command(bounded(t), append([]string{"setup", "nerdctl", "--undo"}, args...)...))
	assert.Equal(t, "overlayfs", driver())
}
