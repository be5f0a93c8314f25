package clients

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// containerdClient is the suite of containerd's client.
func containerdClient() suite {
	return suite{name: "containerd", long: true, least: 150, run: runContainerd}
}

// containerdTimeout bounds a run of the suite.
const containerdTimeout = time.Hour

// The suite's names for the directories of its containerd.
const (
	suiteRoot  = "/var/lib/containerd-test"
	suiteState = "/run/containerd-test"
)

func runContainerd(t *testing.T, snapshotter string) run {
	h := harness.NewHost(t, testfs.Btrfs(t, testfs.WithSize(8<<30)))
	ctx, cancel := context.WithTimeout(t.Context(), containerdTimeout)
	defer cancel()
	for _, dir := range []string{suiteRoot, suiteState} {
		bindData(t, h, dir)
	}
	bin := filepath.Join(h.Dir, "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	built := programs(t, "containerd")
	cmd := exec.CommandContext(ctx, filepath.Join(built, "containerd-client.test"), "-test.v=test2json",
		"-test.timeout=0", "-test.root", "-no-criu",
		// It waits for ever: as the first process of a container, the nc of Debian's busybox does not end by SIGTERM.
		"-test.skip", "^TestBindLowPortNonOpt$")
	cmd.Dir = h.Dir
	cmd.Env = append(os.Environ(),
		"PATH="+strings.Join([]string{bin, h.Programs.Built, built, os.Getenv("PATH")}, ":"), "TMPDIR="+h.Dir,
		"TEST_SNAPSHOTTER="+snapshotter, "IMAGE_LIST="+imageList(t, h))
	if snapshotter == cowshed {
		// Cowshed asks back at the socket of the suite's containerd.
		address := h.ContainerdAddress("suite")
		require.NoError(t, os.Mkdir(filepath.Dir(address), 0o711))
		require.NoError(t, os.Symlink(filepath.Join(suiteState, "containerd.sock"), address))
		cmd.Env = append(cmd.Env, "COWSHED_SOCKET="+h.StartCowshed("suite").Address,
			"SUITE_ROOT="+suiteRoot, "CONTAINERD="+filepath.Join(h.Programs.Built, "containerd"))
		wrap(t, bin, "containerd", "client-containerd.sh")
	}
	return goTest(ctx, t, "containerd-"+snapshotter, cmd, func(test string) string { return test })
}

// bindData makes a directory of the machine one on the filesystem under test, in the mount namespace of the tests.
func bindData(t *testing.T, h *harness.Host, dir string) {
	t.Helper()
	data := filepath.Join(h.Data, filepath.Base(filepath.Dir(dir)))
	require.NoError(t, os.Mkdir(data, 0o711))
	made := os.Mkdir(dir, 0o711)
	if !errors.Is(made, os.ErrExist) {
		require.NoError(t, made)
	}
	require.NoError(t, unix.Mount(data, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))
		if made == nil {
			assert.NoError(t, os.Remove(dir))
		}
	})
}

// imageList makes the images that the suite needs, and the file in which it finds their names.
func imageList(t *testing.T, h *harness.Host) string {
	t.Helper()
	registry := h.StartRegistry()
	layers := harness.SampleImage(t, h.Programs)
	plain := busybox(t, h.Programs,
		// Where the root is read-only, or not of the container's root, runc cannot make them.
		harness.File{Path: "proc/"}, harness.File{Path: "sys/"}, harness.File{Path: "run/"},
		harness.File{Path: "bin/bash", Data: "#!/bin/sh\nexec sh \"$@\"\n", Mode: 0o755})
	digest := pushIndex(t, plain, layers, registry+"/busybox:1")
	push(t, layers, registry+"/layers:1")
	// Tests remove it, and others need the one above.
	pushIndex(t, busybox(t, h.Programs), layers, registry+"/pause:1")
	file := filepath.Join(h.Dir, "images.toml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `BusyBox = "%[1]s/busybox:1"
Alpine = "%[1]s/busybox:1"
Pause = "%[1]s/pause:1"
BusyBoxByDigest = "%[1]s/busybox@%[2]s"
VolumeCopyUp = "%[1]s/layers:1"
VolumeOwnership = "%[1]s/busybox:1"
`, registry, digest), 0o644))
	return file
}
