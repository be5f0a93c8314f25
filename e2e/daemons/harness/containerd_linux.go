package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
)

// Proxy is a plugin of containerd that another program serves on a socket.
type Proxy struct {
	// Name is the plugin's, by which snapshotters and differs are chosen. Two proxies cannot have the same one.
	Name string
	// Type is "snapshot" or "diff".
	Type string
	// Address is the path of the socket.
	Address string
	// Capabilities and Root are optional parts of a snapshotter's entry.
	Capabilities []string
	Root         string
}

// Unpack names a snapshotter and the differ that applies layers to it.
type Unpack struct{ Snapshotter, Differ string }

// ContainerdOptions are the parts of a containerd besides the built-in plugins.
type ContainerdOptions struct {
	Proxies []Proxy
	// Differs are asked in this order; none: containerd's own.
	Differs []string
	// Unpack are the pairs of snapshotter and differ that the transfer service unpacks images with.
	Unpack []Unpack
	// CRI turns the plugin for Kubernetes on. It uses Snapshotter.
	CRI         *CRI
	Snapshotter string
	// NRI turns the Node Resource Interface on, at NRISocket.
	NRI bool
	// NRITimeout is how long containerd waits for an answer of a plugin before it goes on without that plugin. 0: its own two seconds.
	NRITimeout time.Duration
	// Configure, if it is not nil, changes the configuration before containerd starts.
	Configure func(file string)
}

// CRI has the settings of the plugin for Kubernetes.
type CRI struct {
	// PauseImage is the reference of the image that each pod has a container of.
	PauseImage string
	// RegistryHosts is a directory that says for each registry where it is, as the hosts.toml of containerd do.
	RegistryHosts string
	// NetworkPlugins and Networks are the directories with the programs and the configuration of CNI.
	NetworkPlugins, Networks string
}

// Containerd is a containerd of a host.
type Containerd struct {
	*Daemon
	// Address is the path of its socket.
	Address string
	// Root is where it keeps its data.
	Root string
}

// StartContainerd runs containerd, of the module in go.mod, until the test ends. The name tells it from another
// of the same host.
func (h *Host) StartContainerd(name string, opts ContainerdOptions) *Containerd {
	h.t.Helper()
	state := h.dir(h.Dir, name)
	c := &Containerd{Address: h.ContainerdAddress(name), Root: h.dir(h.Data, name)}
	config := h.write(name+".toml", containerdConfig(c, state, h.LogLevel, opts))
	if opts.Configure != nil {
		opts.Configure(config)
	}
	c.Daemon = h.Start(Spec{
		Name:    name,
		Program: filepath.Join(h.Programs.Built, "containerd"),
		Args:    []string{"--config", config},
		Env:     []string{path(h.Programs.Built), "HOME=" + h.Dir, "TMPDIR=" + h.dir(h.Dir, name, "tmp")},
		Ready:   func(ctx context.Context) error { return c.serving(ctx, filepath.Join(h.Dir, name+".log")) },
	})
	return c
}

// ContainerdAddress is the path of the socket of the containerd with this name, which need not run yet: its plugins
// may need to know where to ask back.
func (h *Host) ContainerdAddress(name string) string { return filepath.Join(h.Dir, name, "c.sock") }

// NRISocket is the path of the NRI socket of the containerd with this name, which need not run yet.
func (h *Host) NRISocket(name string) string { return nriSocket(filepath.Join(h.Dir, name)) }

func nriSocket(state string) string { return filepath.Join(state, "nri.sock") }

// Client connects to containerd, with the given default namespace. It is closed when the test ends.
func (c *Containerd) Client(namespace string) *client.Client {
	t := c.host.t
	t.Helper()
	cl, err := client.New(c.Address, client.WithDefaultNamespace(namespace), client.WithTimeout(readyTimeout))
	if err != nil {
		t.Fatalf("harness: connect to containerd: %v", err)
	}
	t.Cleanup(func() {
		if err := cl.Close(); err != nil {
			t.Errorf("harness: %v", err)
		}
	})
	return cl
}

// serving asks containerd whether all of it serves. log is that of the process.
func (c *Containerd) serving(ctx context.Context, log string) error {
	if _, err := os.Stat(c.Address); err != nil {
		return err
	}
	cl, err := client.New(c.Address, client.WithTimeout(askTimeout))
	if err != nil {
		return err
	}
	defer cl.Close()
	serving, err := cl.IsServing(ctx)
	if err != nil {
		return err
	}
	// It serves before the plugin for Kubernetes does.
	output, err := lastRun(log)
	if err != nil {
		return err
	}
	if !serving || !strings.Contains(output, "containerd successfully booted") {
		return fmt.Errorf("containerd on %s does not serve yet", c.Address)
	}
	return nil
}

// containerdConfig is a configuration that keeps off the system's directories.
func containerdConfig(c *Containerd, state, logLevel string, opts ContainerdOptions) string {
	var b strings.Builder
	disabled := []string{
		"io.containerd.internal.v1.opt",
		"io.containerd.image-verifier.v1.bindir",
		"io.containerd.internal.v1.tracing",
		"io.containerd.tracing.processor.v1.otlp",
		"io.containerd.snapshotter.v1.blockfile",
		"io.containerd.snapshotter.v1.erofs",
		"io.containerd.differ.v1.erofs",
	}
	if opts.CRI == nil {
		disabled = append(disabled, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")
	}
	fmt.Fprintf(&b, "version = %d\nroot = %q\nstate = %q\ntemp = %q\nimports = []\n", containerdConfigVersion,
		c.Root, filepath.Join(state, "state"), filepath.Join(state, "tmp"))
	fmt.Fprintf(&b, "disabled_plugins = %s\n\n", tomlStrings(disabled))
	fmt.Fprintf(&b, "[debug]\n  level = %q\n\n[plugins]\n", logLevel)
	fmt.Fprintf(&b, "  [plugins.'io.containerd.server.v1.grpc']\n    address = %q\n", c.Address)
	fmt.Fprintf(&b, "  [plugins.'io.containerd.server.v1.ttrpc']\n    address = %q\n", c.Address+".ttrpc")
	none := filepath.Join(state, "none")
	fmt.Fprintf(&b, "  [plugins.'io.containerd.nri.v1.nri']\n    disable = %t\n    socket_path = %q\n    plugin_path = %q\n    plugin_config_path = %q\n",
		!opts.NRI, nriSocket(state), none, none)
	if opts.NRITimeout > 0 {
		fmt.Fprintf(&b, "    plugin_registration_timeout = %q\n    plugin_request_timeout = %[1]q\n", opts.NRITimeout)
	}
	fmt.Fprintf(&b, "  [plugins.'io.containerd.shim.v1.manager']\n    socket_dir = %q\n", filepath.Join(state, "s"))
	if len(opts.Differs) > 0 {
		fmt.Fprintf(&b, "  [plugins.'io.containerd.service.v1.diff-service']\n    default = %s\n", tomlStrings(opts.Differs))
	}
	if cri := opts.CRI; cri != nil {
		fmt.Fprintf(&b, "  [plugins.'io.containerd.cri.v1.images']\n    snapshotter = %q\n", opts.Snapshotter)
		fmt.Fprintf(&b, "    [plugins.'io.containerd.cri.v1.images'.pinned_images]\n      sandbox = %q\n", cri.PauseImage)
		fmt.Fprintf(&b, "    [plugins.'io.containerd.cri.v1.images'.registry]\n      config_path = %q\n", cri.RegistryHosts)
		// Where the tests run in a container, they may not lower it.
		fmt.Fprintf(&b, "  [plugins.'io.containerd.cri.v1.runtime']\n    restrict_oom_score_adj = true\n")
		fmt.Fprintf(&b, "    netns_mounts_under_state_dir = true\n")
		fmt.Fprintf(&b, "    [plugins.'io.containerd.cri.v1.runtime'.cni]\n      bin_dirs = [%q]\n      conf_dir = %q\n",
			cri.NetworkPlugins, cri.Networks)
	}
	for _, u := range opts.Unpack {
		fmt.Fprintf(&b, "  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n"+
			"    platform = %q\n    snapshotter = %q\n    differ = %q\n", "linux/"+runtime.GOARCH, u.Snapshotter, u.Differ)
	}
	for _, p := range opts.Proxies {
		key := fmt.Sprintf("proxy_plugins.'%s'", p.Name)
		fmt.Fprintf(&b, "\n[%s]\n  type = %q\n  address = %q\n", key, p.Type, p.Address)
		if len(p.Capabilities) > 0 {
			fmt.Fprintf(&b, "  capabilities = %s\n", tomlStrings(p.Capabilities))
		}
		if p.Root != "" {
			fmt.Fprintf(&b, "  [%s.exports]\n    root = %q\n", key, p.Root)
		}
	}
	return b.String()
}

// containerdConfigVersion is that of the containerd in go.mod.
const containerdConfigVersion = 4

func tomlStrings(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
