package clients

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// buildKitTestsEnv chooses other tests of BuildKit's suite, as -run of go test.
const buildKitTestsEnv = "COWSHED_CLIENTS_BUILDKIT"

// buildKitClient is the suite of BuildKit's client, with containerd workers. Its tests may take five minutes each, and have
// deadlines of seconds for the start of daemons: none of them is among those of each day.
func buildKitClient() suite {
	tests, least := "^TestIntegration$/^(TestMergeOp.*|TestDiff.*)$", 50
	if chosen := os.Getenv(buildKitTestsEnv); chosen != "" {
		tests, least = chosen, 1
	}
	return suite{name: "buildkit", long: true, least: least, run: func(t *testing.T, snapshotter string) run {
		return runBuildKit(t, snapshotter, tests)
	}}
}

// runBuildKit runs tests of the suite with a snapshotter. Each test has a containerd, and a cowshed, of its own.
func runBuildKit(t *testing.T, snapshotter, tests string) run {
	built := programs(t, "buildkit")
	h := harness.NewHost(t, testfs.Btrfs(t, testfs.WithSize(16<<30)))
	ctx, cancel := context.WithTimeout(t.Context(), buildKitTimeout)
	defer cancel()

	// Sockets are in the temporary directory, and the paths of sockets are short.
	tmp := filepath.Join(h.Dir, "t")
	require.NoError(t, os.Symlink(h.Data, tmp))
	bin := filepath.Join(h.Dir, "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	require.NoError(t, os.Symlink(filepath.Join(h.Programs.Debian, "usr/bin/docker-registry"), filepath.Join(bin, "registry")))
	cmd := exec.CommandContext(ctx, filepath.Join(built, "buildkit-client.test"), "-test.v=test2json", "-test.timeout=0",
		"-test.run", tests+"/^worker=containerd-snapshotter-"+snapshotter+"$")
	cmd.Env = append(os.Environ(),
		"PATH="+strings.Join([]string{bin, h.Programs.Built, built, os.Getenv("PATH")}, ":"),
		"TMPDIR="+tmp,
		"GOMAXPROCS=4", // so many of its tests run at once, which wait for collections of garbage most of the time
		"BUILDKIT_INTEGRATION_SNAPSHOTTER="+snapshotter,
		"BUILDKIT_REGISTRY_MIRROR_DIR="+mirror(t, h),
	)
	if snapshotter == cowshed {
		data := filepath.Join(h.Data, "cowshed")
		require.NoError(t, os.Mkdir(data, 0o711))
		cmd.Env = append(cmd.Env, "COWSHED_DATA="+data, "COWSHED="+h.CowshedProgram(),
			"CONTAINERD="+filepath.Join(h.Programs.Built, "containerd"), "BUILDKITD="+filepath.Join(built, "buildkitd"))
		wrap(t, bin, "containerd", "buildkit-containerd.sh")
		wrap(t, bin, "buildkitd", "buildkitd.sh")
	}
	// The directory of the package, in which the suite finds files.
	return goTest(ctx, t, "buildkit-"+snapshotter, cmd, func(test string) string {
		name, _, _ := strings.Cut(strings.TrimPrefix(test, "TestIntegration/"), "/worker=")
		_, matrix, _ := strings.Cut(test, "/worker=containerd-snapshotter-"+snapshotter)
		return name + matrix
	})
}

// buildKitTimeout bounds a run of the suite.
const buildKitTimeout = 2 * time.Hour

// mirror makes the data of the registry that the suite runs as a mirror of docker.io. It copies missing images into
// it, for which there would have to be a network.
func mirror(t *testing.T, h *harness.Host) string {
	t.Helper()
	address := h.StartRegistry()
	push(t, busybox(t, h.Programs), address+"/library/busybox:latest")
	push(t, busybox(t, h.Programs, alpineFiles...), address+"/library/alpine:latest")
	push(t, harness.LayerImage(t, v1.Config{}), address+"/tonistiigi/test:nolayers")
	push(t, harness.LayerImage(t, v1.Config{}), address+"/cpuguy83/buildkit-foreign:latest")

	dir := filepath.Join(h.Dir, "mirror")
	require.NoError(t, os.Mkdir(dir, 0o755))
	config := "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: " + h.RegistryDir() +
		"\nhttp:\n  addr: 127.0.0.1:0\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(config), 0o644))
	return dir
}

// alpineFiles are those that the suite expects of the image alpine and not of busybox.
var alpineFiles = []harness.File{
	{Path: "proc/"}, {Path: "sys/"}, {Path: "run/"}, {Path: "mnt/"}, {Path: "opt/"}, {Path: "srv/"},
	{Path: "sbin/"}, {Path: "lib/"}, {Path: "etc/alpine-release", Data: "3.18.0\n"},
}
