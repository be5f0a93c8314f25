package clients

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestNerdctlReference: nerdctl:NAME and nerdctl:NAMESPACE/NAME are the containers of nerdctl, with names that nerdctl keeps.
func TestNerdctlReference(t *testing.T) {
	testfs.CheckLeaks(t)
	program := filepath.Join(programs(t, "nerdctl"), "nerdctl")
	h := harness.NewHost(t, testfs.Btrfs(t))
	c := h.StartCowshed("containerd")
	containerd := h.StartContainerd("containerd", c.Options())
	nerdctl := func(namespace string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(bounded(t), program, append([]string{
			"--address", containerd.Address, "--namespace", namespace, "--snapshotter", cowshed, "--data-root", filepath.Join(h.Data, "nerdctl"),
			"--cgroup-manager", "cgroupfs",
		}, args...)...)
		cmd.Env = append(cmd.Environ(), "PATH="+h.Programs.Built+":/usr/sbin:/usr/bin:/sbin:/bin")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	layers := func(args ...string) (string, error) {
		return c.Output(bounded(t), append(args, "--config", c.Config)...)
	}
	image := h.SaveImage(busybox(t, h.Programs), "docker.io/cowshed/sample:1")
	for _, namespace := range []string{"default", "team"} {
		nerdctl(namespace, "load", "--input", image)
		nerdctl(namespace, "create", "--name", "web", "--net", "none", "docker.io/cowshed/sample:1", "sh", "-c", "echo "+namespace+" >/of")
		nerdctl(namespace, "start", "--attach", "web")
	}
	_, err := layers("fork", "nerdctl:web", "of-default")
	require.NoError(t, err)
	_, err = layers("fork", "nerdctl:team/web", "of-team")
	require.NoError(t, err)
	changes, err := layers("changes", "nerdctl:team/web")
	require.NoError(t, err)
	assert.Contains(t, changes, "A /of\n")
	changes, err = layers("changes", "fork:of-team", "fork:of-default")
	require.NoError(t, err)
	assert.Contains(t, changes, "C /of\n")
	_, err = layers("log", "nerdctl:none")
	require.ErrorContains(t, err, "container none in the namespace default")
	for _, namespace := range []string{"default", "team"} {
		nerdctl(namespace, "rm", "web")
		nerdctl(namespace, "rmi", "docker.io/cowshed/sample:1")
	}
	_, err = layers("rm", "fork:of-default", "fork:of-team")
	require.NoError(t, err)
}
