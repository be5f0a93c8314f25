package harness

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// Engine is a Docker Engine of a host.
type Engine struct {
	*Daemon
	*client.Client
	// Socket is the path of its API's socket.
	Socket string
	// Root is where it keeps its data.
	Root string

	driver string
	// containerdPid is the file with the process id of the containerd that it runs itself.
	containerdPid string
}

// shutdownTimeout is how long an engine that ends waits for its containers. After its own fifteen seconds it would leave them running.
const shutdownTimeout = testfs.Patience

// EngineOptions name an engine's storage for images and containers.
type EngineOptions struct {
	// Driver is a snapshotter of Containerd, or a graph driver or plugin of Debian's engine.
	Driver string
	// Containerd is that of the engine of today. Debian's engine runs its own.
	Containerd *Containerd
	// NRI turns the engine's Node Resource Interface on, at EngineNRISocket.
	NRI bool
	// StorageOpts are those of a graph driver.
	StorageOpts []string
	// Configure, if it is not nil, changes daemon.json before the engine starts. The file then names the storage:
	// Driver is only the engine's name for it.
	Configure func(file string)
}

// StartDocker runs the Docker Engine of the module in go.mod, with the containerd image store, until the test ends.
func (h *Host) StartDocker(opts EngineOptions) *Engine {
	h.t.Helper()
	return h.startEngine("docker", opts, Spec{
		Program: filepath.Join(h.Programs.Built, "dockerd"),
		Args:    append([]string{"--containerd", opts.Containerd.Address}, opts.unlessConfigured("--feature", "containerd-snapshotter=true")...),
		Env:     []string{path(h.Programs.Built)},
	})
}

// StartDebianDocker runs Debian's Docker Engine, with its own containerd and with graph driver plugins, until the
// test ends.
func (h *Host) StartDebianDocker(opts EngineOptions) *Engine {
	h.t.Helper()
	bin := filepath.Join(h.Programs.Debian, "usr/bin")
	sbin := filepath.Join(h.Programs.Debian, "usr/sbin")
	return h.startEngine("docker", opts, Spec{
		Program: filepath.Join(sbin, "dockerd"),
		Args:    opts.unlessConfigured("--experimental"),
		Env:     []string{path(sbin, bin)},
		// It ends if its own containerd is not ready in 15 seconds. An emulated or busy machine may need more.
		Attempts: 8,
	})
}

// unlessConfigured returns flags that the engine refuses beside the same keys of daemon.json.
func (o EngineOptions) unlessConfigured(flags ...string) []string {
	if o.Configure != nil {
		return nil
	}
	return flags
}

// EngineSocket is the path of the API's socket of the engine, which need not run yet.
func (h *Host) EngineSocket() string { return filepath.Join(h.Dir, "docker", "d.sock") }

// EngineNRISocket is the path of the NRI socket of the engine, which need not run yet.
func (h *Host) EngineNRISocket() string { return nriSocket(filepath.Join(h.Dir, "docker")) }

func (h *Host) startEngine(name string, opts EngineOptions, spec Spec) *Engine {
	h.t.Helper()
	exec := h.dir(h.Dir, name)
	e := &Engine{
		Socket: h.EngineSocket(), Root: h.dir(h.Data, name), driver: opts.Driver,
		containerdPid: filepath.Join(exec, "exec", "containerd", "containerd.pid"),
	}
	var err error
	e.Client, err = client.New(client.WithHost("unix://" + e.Socket))
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	h.t.Cleanup(func() {
		if err := e.Close(); err != nil {
			h.t.Errorf("harness: %v", err)
		}
	})

	config := h.write(name+".json", "{}")
	if opts.Configure != nil {
		opts.Configure(config)
	}
	spec.Name = name
	spec.Args = append(spec.Args,
		"--debug",
		"--config-file", config,
		"--host", "unix://"+e.Socket,
		"--group", "0",
		"--data-root", e.Root,
		"--exec-root", filepath.Join(exec, "exec"),
		"--pidfile", filepath.Join(exec, "pid"),
		"--shutdown-timeout", strconv.Itoa(int(shutdownTimeout.Seconds())),
		// The network and the firewall of the machine are left alone.
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
		"--userland-proxy=false",
		// The same on machines with and without systemd.
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/"+h.Cgroup,
	)
	spec.Args = append(spec.Args, opts.unlessConfigured("--storage-driver", opts.Driver)...)
	if opts.NRI {
		none := filepath.Join(exec, "none")
		spec.Args = append(spec.Args, "--nri-opts",
			"enable=true,socket-path="+h.EngineNRISocket()+",plugin-path="+none+",plugin-config-path="+none)
	}
	for _, opt := range opts.StorageOpts {
		spec.Args = append(spec.Args, "--storage-opt", opt)
	}
	spec.Env = append(spec.Env, "HOME="+h.Dir, "TMPDIR="+h.dir(h.Dir, "tmp"), "DOCKER_TMPDIR="+h.dir(h.Dir, "tmp"))
	spec.Ready = func(ctx context.Context) error {
		if _, err := os.Stat(e.Socket); err != nil {
			return err
		}
		_, err := e.Info(ctx, client.InfoOptions{})
		return err
	}
	e.Daemon = h.Start(spec)
	return e
}

// Kill ends the engine, with the containerd that it may run itself, with SIGKILL and waits until both are gone. The
// bind mounts of its own directories that it makes at its start may stay.
func (e *Engine) Kill() {
	t := e.host.t
	t.Helper()
	containerd := readPid(e.containerdPid)
	e.host.ownMounts = append(e.host.ownMounts, e.Root, filepath.Join(e.Root, e.driver))
	e.Daemon.Kill()
	if containerd == 0 {
		return
	}
	// The kernel ends it with the engine. An engine that starts before it is gone would wait for its answer.
	deadline := time.Now().Add(leftTimeout)
	for unix.Kill(containerd, 0) == nil {
		if time.Now().After(deadline) {
			t.Fatalf("harness: containerd of the killed engine, process %d, is still there", containerd)
		}
		time.Sleep(pollInterval)
	}
}

// Unmount unmounts the roots of containers that a killed engine was creating, and knows nothing of. The engine does not run.
func (e *Engine) Unmount() {
	t := e.host.t
	t.Helper()
	for _, m := range e.host.mounts() {
		if !strings.HasPrefix(m, filepath.Join(e.Root, "rootfs")+"/") {
			continue
		}
		t.Logf("harness: the killed engine has left a mount on %s", m)
		if err := unix.Unmount(m, 0); err != nil {
			t.Errorf("harness: unmount %s: %v", m, err)
		}
	}
}

// readPid returns the process id in a file, or 0 if there is none.
func readPid(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	return pid
}

// WaitEvents waits until the engine hears the events of a containerd that was started again. Those that are sent before are lost, and
// with them the ends of containers.
func (e *Engine) WaitEvents(ctx context.Context, c *Containerd) error {
	store := c.Store("moby", e.driver)
	topic := "/tasks/harness-" + strings.ToLower(rand.Text())
	ticker := time.NewTicker(10 * pollInterval)
	defer ticker.Stop()
	for {
		// Of a container that the engine does not have, which it writes to its log and forgets.
		err := store.EventService().Publish(store.Context(ctx), topic, &events.TaskOOM{ContainerID: "harness"})
		if err == nil && strings.Contains(e.Log(), topic) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the engine does not hear containerd's events: %w: %w", ctx.Err(), err)
		case <-ticker.C:
		}
	}
}
