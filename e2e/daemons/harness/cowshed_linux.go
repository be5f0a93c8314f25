package harness

import (
	"bufio"
	"bytes"
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
	"time"
)

// cowshedDir is where buildCowshed put its program, or empty.
var cowshedDir string

// buildCowshed builds the daemon of this tree, once for all tests of a process, or finds the program that was built
// for them.
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

// CowshedProgram returns the path of the daemon's program, which is built from this tree if it has not been yet.
func (h *Host) CowshedProgram() string {
	h.t.Helper()
	program, err := buildCowshed()
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	return program
}

// RemoveCowshed deletes the program that CowshedProgram built, if it did; for TestMain.
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
	// Root is the directory of its storage for containerd.
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
// which may start later, and Docker Engines with graph driver plugins. settings are more lines of its configuration.
func (h *Host) StartCowshed(containerd string, settings ...string) *Cowshed {
	h.t.Helper()
	program := h.CowshedProgram()
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
log_level = %q
%s
`, c.Root, filepath.Join(dir, "state"), c.Address, h.ContainerdAddress(containerd), c.Plugin, "unix://"+c.metrics, h.LogLevel,
		strings.Join(settings, "\n")))
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

// Output is Command, and returns the standard output.
func (c *Cowshed) Output(ctx context.Context, args ...string) (string, error) {
	var out, problem bytes.Buffer
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("cowshed %q: %w: %s", args, err, &problem)
	}
	return out.String(), nil
}

// Options make containerd take its snapshotter and its first differ from Cowshed.
func (c *Cowshed) Options() ContainerdOptions {
	return ProxyOptions(c.Address, CowshedSnapshotter, CowshedDiffer, c.Root)
}

// Comparisons is the metrics' count of comparisons since the daemon was started, for "snapshots" or "docker". Walks are counted by
// the labels of their series, which have the reason.
func (c *Cowshed) Comparisons(ctx context.Context, service string) (native int, walked map[string]int, err error) {
	counts, err := c.counts(ctx, "cowshed_comparisons_total")
	walked = make(map[string]int)
	for series, n := range counts {
		switch {
		case !strings.Contains(series, fmt.Sprintf("service=%q", service)):
		case strings.Contains(series, `way="native"`):
			native += n
		case n > 0:
			walked[series] = n
		}
	}
	return native, walked, err
}

// Prepared is how many snapshots of the given use the metrics count since the daemon was started.
func (c *Cowshed) Prepared(ctx context.Context, use string) (int, error) {
	counts, err := c.counts(ctx, "cowshed_snapshots_prepared_total")
	return counts[fmt.Sprintf("{use=%q}", use)], err
}

// EngineConnected reports whether the daemon is connected to an engine that knows limits: "nri" or "docker".
func (c *Cowshed) EngineConnected(ctx context.Context, engine string) (bool, error) {
	counts, err := c.counts(ctx, "cowshed_engine_connected")
	return counts[fmt.Sprintf("{engine=%q}", engine)] == 1, err
}

// EngineConnections is how often the daemon, also before it was started again, has connected to an engine.
func (c *Cowshed) EngineConnections(engine string) int {
	c.host.t.Helper()
	return strings.Count(c.Log(), `msg="connected to an engine, for the limits of its containers" engine=`+engine+"\n")
}

// Connecting returns a function that waits until the daemon has connected to an engine once more. The metric does not tell: it may
// still be that of the former connection.
func (c *Cowshed) Connecting(engine string) (wait func(ctx context.Context) error) {
	c.host.t.Helper()
	before := c.EngineConnections(engine)
	return func(ctx context.Context) error {
		c.host.t.Helper()
		ticker := time.NewTicker(pollInterval)
		defer ticker.Stop()
		for c.EngineConnections(engine) == before {
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for the next connection to %s: %w", engine, ctx.Err())
			case <-ticker.C:
			}
		}
		return nil
	}
}

// EngineLimits is how many containers of an engine had the given outcome since the daemon was started.
func (c *Cowshed) EngineLimits(ctx context.Context, engine, outcome string) (int, error) {
	counts, err := c.counts(ctx, "cowshed_engine_limits_total")
	return counts[fmt.Sprintf("{engine=%q,outcome=%q}", engine, outcome)], err
}

// EngineDelays is how many containers of an engine the daemon has limited, since it was started, whose time without their
// limit it shows.
func (c *Cowshed) EngineDelays(ctx context.Context, engine string) (int, error) {
	counts, err := c.counts(ctx, "cowshed_engine_limit_delay_seconds_count")
	return counts[fmt.Sprintf("{engine=%q}", engine)], err
}

// EngineDelaysAbove is how many of these were without it for longer than a bound of the metric, in seconds.
func (c *Cowshed) EngineDelaysAbove(ctx context.Context, engine, bound string) (int, error) {
	all, err := c.EngineDelays(ctx, engine)
	if err != nil {
		return 0, err
	}
	counts, err := c.counts(ctx, "cowshed_engine_limit_delay_seconds_bucket")
	return all - counts[fmt.Sprintf("{engine=%q,le=%q}", engine, bound)], err
}

// Configure adds lines to the configuration, which hold when the daemon is started again.
func (c *Cowshed) Configure(lines ...string) {
	c.host.t.Helper()
	text, err := os.ReadFile(c.Config)
	if err == nil {
		err = os.WriteFile(c.Config, append(text, strings.Join(lines, "\n")+"\n"...), 0o600)
	}
	if err != nil {
		c.host.t.Fatalf("harness: %v", err)
	}
}

// counts are the values of a metric by its labels, as they are written.
func (c *Cowshed) counts(ctx context.Context, metric string) (map[string]int, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.metrics)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cowshed/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics: %s", resp.Status)
	}
	counts := make(map[string]int)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		labels, ok := strings.CutPrefix(series, metric)
		if !ok || !strings.HasPrefix(labels, "{") {
			continue
		}
		if counts[labels], err = strconv.Atoi(value); err != nil {
			return nil, fmt.Errorf("metric %s: %w", series, err)
		}
	}
	return counts, lines.Err()
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
