package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// Images of TestCrictl.
const (
	pauseOfCrictl = "registry.k8s.io/pause:3.9"
	imageOfCrictl = "registry.example/sample:1"
)

// A command that writes 6 MiB, and its output on success and on failure.
const (
	write6    = "dd if=/dev/urandom of=/big bs=1M count=6 conv=fsync 2>&1"
	fits      = "6+0 records out"
	overLimit = "Disk quota exceeded"
)

// crictl runs the command of that name on a containerd.
type crictl struct {
	t         *testing.T
	h         *harness.Host
	program   string
	address   string
	directory string // of the files that it reads
}

// run runs crictl and returns its standard output, without the last line's end.
func (c *crictl) run(ctx context.Context, args ...string) (string, error) {
	endpoint := "unix://" + c.address
	return runCommand(ctx, append([]string{c.program, "--config", filepath.Join(c.directory, "crictl.yaml"), "--runtime-endpoint", endpoint,
		"--image-endpoint", endpoint, "--timeout", commandTimeout.String()}, args...))
}

// runCommand runs a command and returns its standard output, without the last line's end. Its error has the standard error.
func runCommand(ctx context.Context, words []string) (string, error) {
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%q: %w: %s", words, err, &problem)
	}
	return strings.TrimSpace(out.String()), nil
}

func (c *crictl) must(ctx context.Context, args ...string) string {
	c.t.Helper()
	out, err := c.run(ctx, args...)
	require.NoError(c.t, err)
	return out
}

// json runs crictl and reads the JSON that it prints.
func (c *crictl) json(ctx context.Context, into any, args ...string) {
	c.t.Helper()
	out := c.must(ctx, args...)
	require.NoError(c.t, json.Unmarshal([]byte(out), into), out)
}

// object is a JSON object that crictl reads.
type object map[string]any

func (c *crictl) write(name string, config object) (file string) {
	c.t.Helper()
	text, err := json.Marshal(config)
	require.NoError(c.t, err)
	file = filepath.Join(c.directory, name+".json")
	require.NoError(c.t, os.WriteFile(file, text, 0o644))
	return file
}

// crictlPod is a pod that runs.
type crictlPod struct {
	*crictl
	id, config, name string
}

// runp makes a pod in the network of the host.
func (c *crictl) runp(ctx context.Context, name string, annotations map[string]string) *crictlPod {
	c.t.Helper()
	logs := filepath.Join(c.directory, name)
	require.NoError(c.t, os.Mkdir(logs, 0o755))
	config := c.write(name, object{
		"metadata": object{"name": name, "namespace": "default", "uid": name}, "annotations": annotations, "log_directory": logs,
		"linux": object{"cgroup_parent": "/" + c.h.Cgroup, "security_context": hostNetwork},
	})
	return &crictlPod{c, c.must(ctx, "runp", config), config, name}
}

var hostNetwork = object{"namespace_options": object{"network": 2}}

// create makes a container. Its script is run by a shell.
func (p *crictlPod) create(ctx context.Context, name string, attempt int, script string) (string, error) {
	config := p.write(p.name+"-"+name, object{
		"metadata": object{"name": name, "attempt": attempt}, "image": object{"image": imageOfCrictl}, "command": []string{"/bin/sh", "-c", script},
		"log_path": fmt.Sprintf("%s.%d.log", name, attempt), "linux": object{"security_context": hostNetwork},
	})
	return p.run(ctx, "create", p.id, config, p.config)
}

// idleScript does nothing until it is told to end.
const idleScript = "trap exit TERM; sleep 3600 & wait"

// start makes and starts a container.
func (p *crictlPod) start(ctx context.Context, name string, attempt int, script string) (id string) {
	p.t.Helper()
	id, err := p.create(ctx, name, attempt, script)
	require.NoError(p.t, err)
	p.must(ctx, "start", id)
	return id
}

// ended waits until a container has ended, and returns its exit code and its output.
func (p *crictlPod) ended(ctx context.Context, id string) (code int, logs string) {
	p.t.Helper()
	require.EventuallyWithT(p.t, func(t *assert.CollectT) {
		out, err := p.run(ctx, "inspect", "-o", "go-template", "--template", "{{.status.state}} {{.status.exitCode}}", id)
		require.NoError(t, err)
		exit, ended := strings.CutPrefix(out, "CONTAINER_EXITED ")
		require.True(t, ended, out)
		code, err = strconv.Atoi(exit)
		require.NoError(t, err)
	}, testfs.Patience, 50*time.Millisecond)
	return code, p.must(ctx, "logs", id)
}

// requireLimit checks that 6 MiB fit into the container or do not. It deletes them, and checks that there is room then.
func (p *crictlPod) requireLimit(ctx context.Context, id, want string) {
	p.t.Helper()
	out, err := p.run(ctx, "exec", id, "/bin/sh", "-c", write6)
	requireWritten(p.t, out, err, want)
	out, err = p.run(ctx, "exec", "--sync", id, "/bin/sh", "-c", makeRoom)
	require.NoError(p.t, err)
	require.Contains(p.t, out, "room")
}

// makeRoom deletes the file of write6, writes another and says room.
const makeRoom = "rm /big; sync -f /; dd if=/dev/zero of=/small bs=1M count=1 conv=fsync && rm /small && sync -f / && echo room"

// requireWritten checks the result of write6.
func requireWritten(t *testing.T, out string, err error, want string) {
	t.Helper()
	if want == fits {
		require.NoError(t, err)
	} else {
		require.Error(t, err, "the command in the container fails")
	}
	require.Contains(t, out, want)
}

// startCrictl starts a containerd with CRI and NRI on Cowshed, for crictl, with settings of Cowshed's configuration. The image is
// pulled from a registry.
func startCrictl(t *testing.T, ctx context.Context, h *harness.Host, settings ...string) (*crictl, *harness.Cowshed, *harness.Containerd) {
	t.Helper()
	program := filepath.Join(programs(t, "crictl"), "crictl")
	registry := h.StartRegistry()
	image := busybox(t, h.Programs)
	push(t, image, registry+"/sample:1")
	push(t, configured(t, image, func(c *v1.Config) { c.Cmd = []string{"/bin/sh", "-c", idleScript} }), registry+"/pause:3.9")

	cowshed := h.StartCowshed("containerd", append(settings, "nri = true", fmt.Sprintf("nri_socket = %q", h.NRISocket("containerd")))...)
	opts := cowshed.Options()
	none := t.TempDir()
	opts.CRI = &harness.CRI{PauseImage: pauseOfCrictl, RegistryHosts: mirrorAll(t, h, registry), NetworkPlugins: none, Networks: none}
	opts.NRI, opts.NRITimeout = true, testfs.Patience
	containerd := h.StartContainerd("containerd", opts)
	c := &crictl{t, h, program, containerd.Address, t.TempDir()}
	require.NoError(t, os.WriteFile(filepath.Join(c.directory, "crictl.yaml"), nil, 0o644))
	c.must(ctx, "pull", imageOfCrictl)
	waitEngine(t, ctx, cowshed, "nri")
	return c, cowshed, containerd
}

// waitEngine waits until the daemon is connected to an engine.
func waitEngine(t *testing.T, ctx context.Context, c *harness.Cowshed, engine string) {
	t.Helper()
	require.Eventually(t, func() bool {
		connected, err := c.EngineConnected(ctx, engine)
		return err == nil && connected
	}, testfs.Patience, 20*time.Millisecond)
}

// TestCrictl: pods that crictl makes from JSON have the limits of their annotations: each container its own. exec, a
// container that is made anew, and restarts of containerd keep them; in the long variant also those of Cowshed. A bad
// size is refused with a message that crictl prints.
func TestCrictl(t *testing.T) {
	testfs.CheckLeaks(t)
	ctx := bounded(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	c, cowshed, containerd := startCrictl(t, ctx, h, `max_limit = "64M"`)

	pod := c.runp(ctx, "web", map[string]string{"cowshed.dev/size": "4M", "size.cowshed.dev/big": "12M", "size.cowshed.dev/init-big": "12M"})
	code, logs := pod.ended(ctx, pod.start(ctx, "init", 0, write6))
	assert.NotZero(t, code)
	assert.Contains(t, logs, overLimit)
	code, logs = pod.ended(ctx, pod.start(ctx, "init-big", 0, write6))
	assert.Zero(t, code, logs)
	sidecar := pod.start(ctx, "sidecar", 0, idleScript)
	big := pod.start(ctx, "big", 0, idleScript)
	pod.requireLimit(ctx, sidecar, overLimit)
	pod.requireLimit(ctx, big, fits)

	for size, want := range map[string]string{
		"much": `cowshed: annotation cowshed.dev/size: invalid argument: size "much": must be a number of bytes`,
		"65M":  `cowshed: annotation cowshed.dev/size: invalid argument: size "65M" is more than the 64MiB that the configuration`,
	} {
		bad := c.runp(ctx, "bad-"+size, map[string]string{"cowshed.dev/size": size, "size.cowshed.dev/good": "12M"})
		_, err := bad.create(ctx, "one", 0, idleScript)
		require.Error(t, err)
		require.Contains(t, strings.ReplaceAll(err.Error(), `\`, ""), want, "crictl quotes the message more than once")
		assert.Empty(t, c.must(ctx, "ps", "--all", "--quiet", "--pod", bad.id), "nothing is left of it")
		bad.requireLimit(ctx, bad.start(ctx, "good", 0, idleScript), fits)
	}

	pod.requireStatistics(ctx, big, cowshed.Root)
	store := containerd.Store("k8s.io", "cowshed")
	restarts := []func(){containerd.Restart}
	if testfs.Long() {
		restarts = append(restarts, func() { containerd.Kill(); containerd.Start() }, func() { cowshed.Kill(); cowshed.Start() })
	}
	for _, restart := range restarts {
		reconnected := cowshed.Connecting("nri")
		restart()
		require.NoError(t, reconnected(ctx))
		require.EventuallyWithT(t, func(c *assert.CollectT) { assert.NoError(c, store.Reach(store.Context(ctx))) }, testfs.Patience, 50*time.Millisecond)
		pod.requireLimit(ctx, sidecar, overLimit)
		pod.requireLimit(ctx, big, fits)
	}
	c.must(ctx, "rm", "--force", sidecar)
	pod.requireLimit(ctx, pod.start(ctx, "sidecar", 1, idleScript), overLimit)

	c.must(ctx, "rmp", "--all", "--force")
	c.must(ctx, "rmi", "--all")
	requireEmpty(t, store)
}

// requireStatistics checks the figures of crictl for a container and for the filesystem of images, which has the directory root.
func (p *crictlPod) requireStatistics(ctx context.Context, id, root string) {
	p.t.Helper()
	p.must(ctx, "exec", id, "/bin/sh", "-c", "dd if=/dev/urandom of=/held bs=1M count=3 conv=fsync; sync -f /")
	type bytes struct {
		Value uint64 `json:",string"`
	}
	type layer struct {
		FsID      struct{ Mountpoint string }
		UsedBytes bytes
	}
	require.EventuallyWithT(p.t, func(t *assert.CollectT) { // containerd looks every ten seconds
		out, err := p.run(ctx, "stats", "-o", "json", id)
		require.NoError(t, err)
		var stats struct {
			Stats []struct{ WritableLayer layer }
		}
		require.NoError(t, json.Unmarshal([]byte(out), &stats), out)
		require.Len(t, stats.Stats, 1, out)
		assert.GreaterOrEqual(t, stats.Stats[0].WritableLayer.UsedBytes.Value, uint64(3<<20), out)
		assert.Less(t, stats.Stats[0].WritableLayer.UsedBytes.Value, uint64(4<<20), out)
	}, testfs.Patience, time.Second)
	var info struct {
		Status struct{ ImageFilesystems []layer }
	}
	p.json(ctx, &info, "imagefsinfo", "-o", "json")
	require.Len(p.t, info.Status.ImageFilesystems, 1)
	assert.Equal(p.t, root, info.Status.ImageFilesystems[0].FsID.Mountpoint)
	assert.Positive(p.t, info.Status.ImageFilesystems[0].UsedBytes.Value)
	p.must(ctx, "exec", id, "rm", "/held")
}

// requireEmpty checks that nothing is left of snapshots.
func requireEmpty(t *testing.T, store *harness.Store) {
	t.Helper()
	r := run{outcomes: make(map[string]outcome), output: make(map[string]string)}
	r.checkEmpty(t, store)
	for name, o := range r.outcomes {
		assert.Equal(t, passed, o, "%s: %s", name, r.output[name])
	}
}
