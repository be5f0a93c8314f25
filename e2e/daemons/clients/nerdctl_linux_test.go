package clients

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// nerdctl does users' tasks with nerdctl, and with BuildKit through it.
func nerdctl() suite {
	return suite{name: "nerdctl", least: len(flows), run: func(t *testing.T, snapshotter string) run {
		h := harness.NewHost(t, testfs.Btrfs(t))
		registry := h.StartRegistry()
		opts := harness.ContainerdOptions{}
		if snapshotter == cowshed {
			opts = h.StartCowshed("containerd").Options()
		}
		containerd := h.StartContainerd("containerd", opts)
		buildKit := startBuildKit(t, h, programs(t, "buildkit"), containerd, snapshotter)

		command := nerdctlCommand(t, h, containerd, buildKit, snapshotter)
		result := runFlows(t, h, "nerdctl-"+snapshotter, registry, command, flows)
		result.checkEmpty(t, containerd.Store("default", snapshotter))
		return result
	}}
}

// nerdctlCommand is nerdctl for a shell, with arguments that every command has.
func nerdctlCommand(t *testing.T, h *harness.Host, containerd *harness.Containerd, buildKit buildKit, snapshotter string) string {
	t.Helper()
	return fmt.Sprintf("env BUILDKIT_HOST=unix://%s PATH=%s:%s:$PATH %s --address %s --snapshotter %s --data-root %s "+
		"--cni-path %s --cni-netconfpath %s --cgroup-manager cgroupfs --insecure-registry",
		buildKit.address, h.Programs.Built, filepath.Dir(buildKit.buildctl), filepath.Join(programs(t, "nerdctl"), "nerdctl"),
		containerd.Address, snapshotter, filepath.Join(h.Data, "nerdctl"), h.Dir, filepath.Join(h.Dir, "netconf"))
}
