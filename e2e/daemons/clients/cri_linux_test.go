package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// criTestsEnv chooses tests of critest, as its -ginkgo.focus does.
const criTestsEnv = "COWSHED_CLIENTS_CRITEST"

// critest is the suite for the needs of Kubernetes.
func critest() suite {
	focus, least := os.Getenv(criTestsEnv), 1
	if focus == "" {
		least = 115
	}
	return suite{name: "cri", long: true, least: least, run: func(t *testing.T, snapshotter string) run {
		return runCRI(t, snapshotter, focus)
	}}
}

// criSkipped are tests of containerd that fail in some runs with either snapshotter. containerd leaves a sandbox and its network, or does
// not tell a plugin of NRI about containers that are made while the plugin connects.
const criSkipped = "should fail RunPodSandbox and clean up when the NRI hook errors|" +
	"should receive a callback for container created during the Synchronize call|" +
	"should receive information about all containers without the race condition during initialization"

// criTimeout bounds a run of the suite.
const criTimeout = time.Hour

// runCRI runs the tests that match focus, or all. Cowshed is a plugin of NRI beside those that the suite connects.
func runCRI(t *testing.T, snapshotter, focus string) run {
	h := harness.NewHost(t, testfs.Btrfs(t, testfs.WithSize(8<<30)))
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	registry := h.StartRegistry()
	pushCRIImages(t, h, registry)
	opts := harness.ContainerdOptions{Snapshotter: snapshotter}
	if snapshotter == cowshed {
		opts = h.StartCowshed("containerd", "nri = true", fmt.Sprintf("nri_socket = %q", h.NRISocket("containerd"))).Options()
	}
	opts.NRI = true
	opts.CRI = &harness.CRI{
		PauseImage:     "registry.k8s.io/pause:3.9",
		RegistryHosts:  mirrorAll(t, h, registry),
		NetworkPlugins: programs(t, "cni"),
		Networks:       podNetwork(t, h),
	}
	containerd := h.StartContainerd("containerd", opts)

	report := filepath.Join(outDir(t), "cri-"+snapshotter+".json")
	socket := "unix://" + containerd.Address
	cmd := exec.CommandContext(ctx, filepath.Join(programs(t, "cri"), "critest"), "-runtime-endpoint", socket, "-image-endpoint", socket,
		"-nri-socket", h.NRISocket("containerd"), "-ginkgo.focus", focus, "-ginkgo.skip", criSkipped,
		"-ginkgo.json-report", report, "-ginkgo.no-color", "-ginkgo.randomize-all=false")
	log := logFile(t, "cri-"+snapshotter)
	defer log.Close()
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, h.Dir
	cmd.Env = append(os.Environ(), "TMPDIR="+h.Dir)
	// The suite fails if one of its tests does.
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Errorf("run critest: %v", err)
	}
	require.NoError(t, ctx.Err())
	result, err := readReport(report)
	require.NoError(t, err)
	return result
}

// readReport reads the outcomes from a report of Ginkgo.
func readReport(file string) (run, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return run{}, err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts    []string
			LeafNodeType, LeafNodeText string
			State                      string
			Failure                    struct{ Message string }
			CapturedGinkgoWriterOutput string
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return run{}, fmt.Errorf("report %s: %w", file, err)
	}
	result := run{outcomes: make(map[string]outcome), output: make(map[string]string)}
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			if spec.LeafNodeType != "It" {
				continue
			}
			name := strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " / ")
			switch spec.State {
			case "passed":
				result.outcomes[name] = passed
			case "skipped", "pending":
				result.outcomes[name] = skipped
			default:
				result.outcomes[name] = failed
			}
			result.output[name] = end(spec.CapturedGinkgoWriterOutput, shownOutput) + spec.Failure.Message
		}
	}
	return result, nil
}

// pushCRIImages makes images that behave as the suite expects of those that it pulls.
func pushCRIImages(t *testing.T, h *harness.Host, registry string) {
	t.Helper()
	// Debian's busybox has neither of these commands.
	plain := busybox(t, h.Programs,
		harness.File{Path: "bin/ipcs", Data: "#!/bin/sh\ncat /proc/sysvipc/shm\n", Mode: 0o755},
		harness.File{Path: "bin/pgrep", Data: "#!/bin/sh\npidof -- \"$1\"\n", Mode: 0o755},
	)
	// The web servers of the suite are nginx and httpd: it looks for the process, for its output, and at the page.
	web := func(port int) v1.Image {
		server := fmt.Sprintf("#!/bin/sh\ntrap 'kill $!; exit' TERM QUIT\necho httpd\nmkdir -p /var/run\necho $$ >/var/run/nginx.pid\n"+
			"httpd -f -p %d -h /usr/share/nginx/html &\nwait\n", port)
		img := busybox(t, h.Programs,
			harness.File{Path: "usr/sbin/nginx", Data: server, Mode: 0o755},
			harness.File{Path: "usr/share/"}, harness.File{Path: "usr/share/nginx/"}, harness.File{Path: "usr/share/nginx/html/"},
			harness.File{Path: "usr/share/nginx/html/index.html", Data: "<h1>Welcome to nginx!</h1>\n"},
		)
		return configured(t, img, func(c *v1.Config) { c.Cmd = []string{"/usr/sbin/nginx", "master process"} })
	}
	// Not sleep, for which the suite looks in the process namespace of a pod.
	pause := configured(t, plain, func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/bin/tail", "-f", "/dev/null"}, nil })

	const e2e, own = "e2e-test-images/", "k8s-staging-cri-tools/"
	images := map[string]v1.Image{
		e2e + "httpd:2.4.39-4": web(80),
		"pause:3.9":            pause,
		e2e + "busybox:1.29-2": plain,
		e2e + "nginx:1.14-2":   web(80),
		own + "hostnet-nginx-" + runtime.GOARCH + ":latest": web(12003),
		own + "test-image-predefined-group:latest": configured(t, busybox(t, h.Programs,
			harness.File{Path: "etc/passwd", Data: "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n"},
			harness.File{Path: "etc/group", Data: "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"},
		), func(c *v1.Config) { c.User = "1000" }),
	}
	for name, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:100",
	} {
		images[own+"test-image-user-"+name+":latest"] = configured(t, plain, func(c *v1.Config) { c.User = user })
	}
	for _, name := range []string{"test-image-latest:latest", "test-image-tag:test", "test-image-tag:all", "test-image-1:latest",
		"test-image-2:latest", "test-image-3:latest"} {
		images[own+name] = busybox(t, h.Programs, harness.File{Path: "name", Data: name})
	}
	for _, tag := range []string{"1", "2", "3"} {
		images[own+"test-image-tags:"+tag] = images[own+"test-image-latest:latest"]
	}
	for name, img := range images {
		push(t, img, registry+"/"+name)
	}
}

// mirrorAll makes a directory that has containerd ask one registry for the images of all.
func mirrorAll(t *testing.T, h *harness.Host, registry string) string {
	t.Helper()
	dir := filepath.Join(h.Dir, "hosts")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "_default"), 0o755))
	hosts := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+registry)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte(hosts), 0o644))
	return dir
}

// podNetwork configures the network of pods, and returns the directory that says so.
func podNetwork(t *testing.T, h *harness.Host) string {
	t.Helper()
	dir := filepath.Join(h.Dir, "cni")
	require.NoError(t, os.Mkdir(dir, 0o755))
	config := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods0",
"isGateway": true, "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.88.0.0/16"}]],
"routes": [{"dst": "0.0.0.0/0"}]}}]}`, filepath.Join(h.Dir, "ipam"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "10-pods.conflist"), []byte(config), 0o644))
	return dir
}
