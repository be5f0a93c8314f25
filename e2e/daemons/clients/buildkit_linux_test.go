package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/golden"
	"github.com/cowshed/cowshed/internal/testfs"
)

// buildKitTestsEnv chooses other tests of BuildKit's suite, as -run of go test.
const buildKitTestsEnv = "COWSHED_CLIENTS_BUILDKIT"

// buildKitClient is the suite of BuildKit's client, with containerd workers. Its tests may take five minutes each, and have
// deadlines of seconds for the start of daemons: none of them is among those of each day.
func buildKitClient() suite {
	tests, least := os.Getenv(buildKitTestsEnv), 1
	if tests == "" {
		least = 100
	}
	return suite{name: "buildkit", long: true, least: least, run: func(t *testing.T, snapshotter string) run {
		if tests == "" {
			tests = buildKitPattern(readBuildKitTests(t))
		}
		return runBuildKit(t, snapshotter, tests)
	}}
}

// buildKitTest is a test of the suite, or a pattern of tests.
type buildKitTest struct {
	file, name string
	leftOut    string // why; "": it is run
}

func readBuildKitTests(t *testing.T) (tests []buildKitTest) {
	t.Helper()
	data, err := os.ReadFile("testdata/buildkit-tests.tsv")
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := append(strings.Split(strings.TrimSuffix(line, "\n"), "\t"), "")
		require.GreaterOrEqual(t, len(fields), 3, "%q is not FILE, TEST and a reason", line)
		tests = append(tests, buildKitTest{fields[0], fields[1], fields[2]})
	}
	return tests
}

// buildKitPattern is the -run of the tests that are run. Names of its second part belong to one of the first part each.
func buildKitPattern(tests []buildKitTest) string {
	var names []string
	for _, test := range tests {
		if test.leftOut == "" {
			names = append(names, test.name)
		}
	}
	return "^(TestIntegration|TestClientGatewayIntegration)$/^(" + strings.Join(names, "|") + ")$"
}

// TestBuildKitTests keeps the documentation of the choice.
func TestBuildKitTests(t *testing.T) {
	tests := readBuildKitTests(t)
	var files []string
	run, leftOut := make(map[string][]string), make(map[string][]string)
	var reasons strings.Builder
	count := 0
	for _, test := range tests {
		if !slices.Contains(files, test.file) {
			files = append(files, test.file)
		}
		if test.leftOut == "" {
			run[test.file] = append(run[test.file], test.name)
			count++
			continue
		}
		leftOut[test.file] = append(leftOut[test.file], test.name)
		fmt.Fprintf(&reasons, "| `%s` | %s |\n", test.name, test.leftOut)
	}
	var b strings.Builder
	fmt.Fprintf(&b, buildKitPage, count, len(tests))
	for _, file := range files {
		fmt.Fprintf(&b, "| `%s_test.go` | %d | %d |\n", file, len(run[file]), len(leftOut[file]))
	}
	fmt.Fprintf(&b, "\n## Tests that are left out\n\n| test | why |\n|---|---|\n%s\n## Tests that are run\n", &reasons)
	for _, file := range files {
		if len(run[file]) > 0 {
			fmt.Fprintf(&b, "\n`%s_test.go`:\n\n- `%s`\n", file, strings.Join(run[file], "`\n- `"))
		}
	}
	golden.Check(t, "../../../docs/buildkit-tests.md", b.String())
}

const buildKitPage = `# BuildKit's tests that are run

BuildKit's client has a suite for a running ` + "`buildkitd`" + `. ` + "`make test-clients`" + ` runs the tests of BuildKit 0.34.2 that make, change,
compare, export, import or remove layers: %d of %d. Each runs with Cowshed and with overlayfs, and a test that fails only with
Cowshed fails the target. [testing.md](testing.md#clients) has the results, and says how to choose others. A name that ends in
` + "`.*`" + ` stands for several tests.

The tests of ` + "`TestCompatibilityIntegration`" + ` are left out: they ask for one image of the internet by its digest. The other
functions of the package start no ` + "`buildkitd`" + `.

This page is made of ` + "`e2e/daemons/clients/testdata/buildkit-tests.tsv`" + `. To write it anew:

` + "```sh\ncd e2e/daemons && go test ./clients -run 'BuildKitTests$' -update\n```" + `

| file | run | left out |
|---|---|---|
`

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
		name, _, _ := strings.Cut(test, "/worker=")
		_, name, _ = strings.Cut(name, "/")
		worker := "/worker=containerd-snapshotter-" + snapshotter
		_, matrix, _ := strings.Cut(test, worker)
		return name + strings.ReplaceAll(matrix, worker, "") // some tests put their whole name before that of a part
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
