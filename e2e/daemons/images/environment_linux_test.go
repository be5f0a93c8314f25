package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// environments start the daemons that tools need, and return for each tool the variables of its environment.
func environments(t *testing.T, h *harness.Host) map[string][]string {
	t.Helper()
	containerd := h.StartContainerd("containerd", harness.ContainerdOptions{})
	today := h.StartDocker(harness.EngineOptions{Driver: "overlayfs", Containerd: containerd})
	other := harness.NewHost(t, filepath.Join(h.Data, "debian"))
	debian := other.StartDebianDocker(harness.EngineOptions{Driver: "overlay2"})
	removeNew(t, "/var/lib/containers", "/var/cache/containers")
	debianTools := path(filepath.Join(h.Programs.Debian, "usr/bin"))
	config := append(containersConfig(t), debianTools)
	return map[string][]string{
		"skopeo":       config,
		"buildah":      slices.Concat(config, containersStore(t, h.Programs)),
		"podman":       slices.Concat(config, containersStore(t, h.Programs)),
		"umoci":        {debianTools},
		"docker-20.10": {"DOCKER_HOST=unix://" + debian.Socket, debianTools},
		"docker-29":    {"DOCKER_HOST=unix://" + today.Socket, path(client(t, "docker"))},
		"ctr":          {"CONTAINERD_ADDRESS=" + containerd.Address, "CONTAINERD_NAMESPACE=ctr", path(h.Programs.Built)},
		"nerdctl": {"CONTAINERD_ADDRESS=" + containerd.Address, "CONTAINERD_NAMESPACE=nerdctl",
			path(asDocker(t, filepath.Join(client(t, "nerdctl"), "nerdctl"), "--data-root", filepath.Join(h.Data, "nerdctl"), "--insecure-registry"))},
	}
}

func path(dir string) string { return "PATH=" + dir + ":" + os.Getenv("PATH") }

// client is the directory of the programs of a set of scripts/clients.sh.
func client(t testing.TB, set string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join("..", "..", "..", "scripts", "clients.sh"), "path", set)
	out, err := cmd.Output()
	if err != nil {
		testfs.Skip(t, "needs the programs that scripts/clients.sh build %s makes: %v", set, err)
	}
	return strings.TrimSpace(string(out))
}

// asDocker makes a command docker, and returns the directory that it is in.
func asDocker(t testing.TB, words ...string) string {
	t.Helper()
	dir := tempDir(t)
	script := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", strings.Join(words, " "))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755))
	return dir
}

// containersConfig is for skopeo, buildah and podman: they take every image, and nothing of the machine's configuration.
func containersConfig(t testing.TB) []string {
	t.Helper()
	home := tempDir(t)
	dir := filepath.Join(home, ".config", "containers")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.json"), []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o644))
	registries := filepath.Join(dir, "registries.conf")
	require.NoError(t, os.WriteFile(registries, nil, 0o644))
	return []string{"HOME=" + home, "CONTAINERS_REGISTRIES_CONF=" + registries}
}

// removeNew removes directories when the test ends, unless they are there now: skopeo, buildah and podman have a cache of
// digests and a lock at fixed paths.
func removeNew(t testing.TB, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		}
	}
}

// containersStore is a store of buildah's or podman's own.
func containersStore(t testing.TB, p harness.Programs) []string {
	t.Helper()
	dir := tempDir(t)
	write := func(name, format string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, format, dir, p.Debian), 0o644))
		return file
	}
	storage := write("storage.conf", `[storage]
driver = "vfs"
graphroot = "%[1]s/root"
runroot = "%[1]s/run"
`)
	engine := write("containers.conf", `[engine]
conmon_path = ["%[2]s/usr/bin/conmon"]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
static_dir = "%[1]s/static"
tmp_dir = "%[1]s/tmp"
volume_path = "%[1]s/volumes"
[engine.runtimes]
runc = ["%[2]s/usr/sbin/runc"]
[network]
network_config_dir = "%[1]s/networks"
`)
	return []string{"CONTAINERS_STORAGE_CONF=" + storage, "CONTAINERS_CONF=" + engine}
}
