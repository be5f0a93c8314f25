package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// cowshedDir is where buildCowshed put its program, or empty.
var cowshedDir string

// buildCowshed builds the daemon of this tree, once for all tests of a process, or finds the one that was built for
// them.
var buildCowshed = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		return filepath.Join(programsIn(dir).Built, "cowshed"), nil
	}
	top, err := sourceTop()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "cowshed-e2e-")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "cowshed")
	cmd := exec.Command("go", "build", "-o", program, "./cmd/cowshed")
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build cowshed: %w: %s", err, out), os.RemoveAll(dir))
	}
	cowshedDir = dir
	return program, nil
})

// RemoveCowshed deletes the program that StartCowshed built, if it did; for TestMain.
func RemoveCowshed() error {
	if cowshedDir == "" {
		return nil
	}
	return os.RemoveAll(cowshedDir)
}

// Cowshed is a `cowshed serve` of a host.
type Cowshed struct {
	*Daemon
	// Address is the path of the socket that containerd reaches it on.
	Address string
	// Root is where it keeps what it stores for containerd.
	Root string
	// Plugin is the name of the graph driver plugin for Docker Engine. No other test's is the same.
	Plugin string
	// Config is its configuration.
	Config string

	metrics string // path of the socket
	program string
}

// PluginName is the name of the graph driver plugin that StartCowshed serves.
func (h *Host) PluginName() string { return "cowshed-" + filepath.Base(h.Dir) }

// StartCowshed builds cowshed from this tree and serves with it, until the test ends: the containerd of the given name,
// which may start later, and Docker Engines with graph driver plugins.
func (h *Host) StartCowshed(containerd string) *Cowshed {
	h.t.Helper()
	program, err := buildCowshed()
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	dir := h.dir(h.Dir, "cowshed")
	c := &Cowshed{
		Address: filepath.Join(dir, "c.sock"), Root: filepath.Join(h.Data, "cowshed"), Plugin: h.PluginName(),
		metrics: filepath.Join(dir, "m.sock"), program: program,
	}
	c.Config = h.write("cowshed.toml", fmt.Sprintf(`root = %q
state = %q
address = %q
containerd_address = %q
docker_plugin = %q
metrics = %q
log_level = "debug"
`, c.Root, filepath.Join(dir, "state"), c.Address, h.ContainerdAddress(containerd), c.Plugin, "unix://"+c.metrics))
	plugin := filepath.Join(pluginSockets, c.Plugin+".sock")
	h.t.Cleanup(func() {
		// It is there if the daemon was killed.
		if err := os.Remove(plugin); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("harness: %v", err)
		}
	})
	c.Daemon = h.Start(Spec{
		Name:    "cowshed",
		Program: program,
		Args:    []string{"serve", "--config", c.Config},
		Env:     []string{path(), "HOME=" + h.Dir, "TMPDIR=" + h.dir(h.Dir, "tmp")},
		Ready: func(ctx context.Context) error {
			return errors.Join(accepts(ctx, c.Address), accepts(ctx, plugin), accepts(ctx, c.metrics))
		},
	})
	return c
}

// pluginSockets is where Docker Engine looks for plugins.
const pluginSockets = "/run/docker/plugins"

// Command runs another command of cowshed, beside the daemon.
func (c *Cowshed) Command(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, c.program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cowshed %q: %w: %s", args, err, out)
	}
	return nil
}

// Options make containerd take its snapshotter and its first differ from Cowshed.
func (c *Cowshed) Options() ContainerdOptions {
	return ProxyOptions(c.Address, CowshedSnapshotter, CowshedDiffer, c.Root)
}

// Comparisons is what the metrics count of comparisons since the daemon was started, for "snapshots" or "docker".
func (c *Cowshed) Comparisons(ctx context.Context, service string) (native, walked int, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.metrics)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cowshed/metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if !strings.HasPrefix(series, "cowshed_comparisons_total{") || !strings.Contains(series, fmt.Sprintf("service=%q", service)) {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, 0, fmt.Errorf("metric %s: %w", series, err)
		}
		if strings.Contains(series, `way="native"`) {
			native += n
		} else {
			walked += n
		}
	}
	return native, walked, nil
}

// accepts tells whether a unix socket takes connections.
func accepts(ctx context.Context, socket string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}
