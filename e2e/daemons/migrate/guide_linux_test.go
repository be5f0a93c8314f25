package migrate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// guide runs the commands of a guide: the blocks of language sh of a document. Paths of the machine stand for those of the
// host, and the test starts and stops services.
type guide struct {
	t     *testing.T
	host  *harness.Host
	bin   string // the first directory of PATH
	paths *strings.Replacer
	env   []string
	// systemctl does the same as `systemctl ACTION UNIT…`.
	systemctl func(ctx context.Context, action string, units []string)
	output    strings.Builder
}

func newGuide(t *testing.T, h *harness.Host, paths ...string) *guide {
	t.Helper()
	g := &guide{t: t, host: h, bin: filepath.Join(h.Dir, "bin"), paths: strings.NewReplacer(paths...)}
	require.NoError(t, os.Mkdir(g.bin, 0o755))
	g.env = append(os.Environ(), "PATH="+g.bin+":"+os.Getenv("PATH"))
	return g
}

// command makes a command that runs a program with more arguments, which depend on its first one.
func (g *guide) command(name, program string, more map[string][]string) {
	g.t.Helper()
	var script strings.Builder
	script.WriteString("#!/bin/sh\ncase $1 in\n")
	for first, args := range more {
		fmt.Fprintf(&script, "%s) set -- \"$@\" %s ;;\n", first, strings.Join(args, " "))
	}
	fmt.Fprintf(&script, "esac\nexec %s \"$@\"\n", program)
	require.NoError(g.t, os.WriteFile(filepath.Join(g.bin, name), []byte(script.String()), 0o755))
}

// run runs all blocks of a document in docs/howto.
func (g *guide) run(ctx context.Context, document string) {
	g.t.Helper()
	blocks := strings.Split(howTo(g.t, document), "\n```")
	ran := false
	for i := 1; i < len(blocks); i += 2 {
		if code, ok := strings.CutPrefix(blocks[i], "sh\n"); ok {
			g.block(ctx, code)
			ran = true
		}
	}
	require.True(g.t, ran, "%s has commands", document)
}

// howTo returns the text of a document in docs/howto.
func howTo(t *testing.T, document string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "howto", document))
	require.NoError(t, err)
	return string(text)
}

// block runs the lines of a block, in the order in which they stand.
func (g *guide) block(ctx context.Context, code string) {
	g.t.Helper()
	lines := bufio.NewScanner(strings.NewReader(code))
	for lines.Scan() {
		line := lines.Text()
		if words := strings.Fields(line); len(words) > 2 && words[0] == "systemctl" {
			g.systemctl(ctx, words[1], words[2:])
			continue
		}
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", g.paths.Replace(line))
		cmd.Dir, cmd.Env = g.host.Dir, g.env
		out, err := cmd.CombinedOutput()
		fmt.Fprintf(&g.output, "# %s\n%s", line, out)
		require.NoError(g.t, err, "%s\n%s", line, out)
	}
}

// after returns the output of all commands like this.
func (g *guide) after(command string) (outputs []string) {
	for part := range strings.SplitSeq("\n"+g.output.String(), "\n# ") {
		line, out, _ := strings.Cut(part, "\n")
		if line == command {
			outputs = append(outputs, strings.TrimSpace(out))
		}
	}
	return outputs
}

// dockerGuide is a guide for a host with Docker Engine, which has an image and a container web. The engine's version
// after the commands is that of today, and then, for the rest of the document, again that of Debian.
type dockerGuide struct {
	*guide
	driver     string
	config     string // daemon.json
	containerd *harness.Containerd
	cowshed    *harness.Cowshed
	engine     *harness.Engine
	stops      int // of the former engine
}

func newDockerGuide(t *testing.T, driver string) *dockerGuide {
	t.Helper()
	h := harness.NewHost(t, testfs.Btrfs(t))
	d := &dockerGuide{guide: newGuide(t, h, "/var/lib/docker", filepath.Join(h.Data, "docker")), driver: driver, config: filepath.Join(h.Dir, "daemon.json")}
	d.cowshed = h.StartCowshed("containerd")
	containerdConfig := ""
	d.containerd = h.StartContainerd("containerd", harness.ContainerdOptions{Configure: func(file string) {
		containerdConfig = file
		require.NoError(t, d.cowshed.Command(t.Context(), "setup", "containerd", "--apply", "--config", d.cowshed.Config, "--containerd-config", file))
	}})
	d.guide.systemctl = d.systemctl
	d.env = append(d.env, "DOCKER_HOST=unix://"+filepath.Join(h.Dir, "docker", "d.sock"))
	d.command("cowshed", h.CowshedProgram(), map[string][]string{
		"setup":   {"--config", d.cowshed.Config, "--docker-config", d.config, "--containerd-config", containerdConfig, "--engine", "$(cat " + d.version() + ")"},
		"migrate": {"--root", d.cowshed.Root, "--containerd-address", d.containerd.Address, "--plugin-name", d.cowshed.Plugin},
	})
	require.NoError(t, os.WriteFile(d.config, fmt.Appendf(nil, `{"storage-driver": %q}`, driver), 0o644))
	return d
}

// onCowshed tells whether setup has changed the engine's configuration.
func (d *dockerGuide) onCowshed() bool {
	text, err := os.ReadFile(d.config)
	require.NoError(d.t, err)
	return strings.Contains(string(text), "cowshed")
}

// version is a file with the version of the engine that is installed.
func (d *dockerGuide) version() string { return filepath.Join(d.host.Dir, "version") }

// install installs an engine of that version, with its command.
func (d *dockerGuide) install(version, docker string) {
	require.NoError(d.t, os.WriteFile(d.version(), []byte(version), 0o644))
	d.command("docker", docker, nil)
}

func (d *dockerGuide) debian() {
	d.install("20.10.24", filepath.Join(d.host.Programs.Debian, "usr/bin/docker"))
}

func (d *dockerGuide) today() { d.install("29.0", filepath.Join(clients(d.t, "docker"), "docker")) }

func (d *dockerGuide) systemctl(_ context.Context, action string, units []string) {
	configure := func(file string) {
		text, err := os.ReadFile(d.config)
		require.NoError(d.t, err)
		require.NoError(d.t, os.WriteFile(file, text, 0o600))
	}
	switch {
	case action == "stop" && slices.Contains(units, "docker.socket"):
		if d.engine != nil {
			d.engine.Stop()
		}
		d.stops++
		if d.stops == 1 {
			d.today() // it is upgraded
		}
	case action == "stop" && slices.Contains(units, "docker"):
		d.engine.Stop()
	case action == "start" && slices.Contains(units, "docker") && d.onCowshed() && d.stops == 1:
		d.engine = d.host.StartDocker(harness.EngineOptions{Driver: harness.CowshedSnapshotter, Containerd: d.containerd, Configure: configure})
	case action == "start" && slices.Contains(units, "docker") && d.onCowshed():
		d.engine = d.host.StartDebianDocker(harness.EngineOptions{Driver: d.cowshed.Plugin, Configure: configure})
	case action == "start" && slices.Contains(units, "docker"):
		d.debian()
		d.engine = d.host.StartDebianDocker(harness.EngineOptions{Driver: d.driver, Configure: configure})
	default:
		require.Fail(d.t, "no such service", "%s %v", action, units)
	}
}

// makeWeb makes the image and the container that the guides name.
func (d *dockerGuide) makeWeb(ctx context.Context) {
	d.t.Helper()
	d.systemctl(ctx, "start", []string{"docker"})
	require.NoError(d.t, d.engine.Load(ctx, d.host.SaveImage(harness.SampleImage(d.t, d.host.Programs), "example/web:1")))
	makeContainers(d.t, ctx, d.engine, []recipe{{name: "web", image: "example/web:1", script: harness.ChangeScript}})
	d.block(ctx, "docker diff web\ndocker images --all --quiet\ndocker ps --all --quiet\n")
}

// guideDrivers are the former drivers for which the guides run: the long variant has two.
func guideDrivers() []string {
	if testfs.Long() {
		return []string{"btrfs", "overlay2"}
	}
	return []string{"btrfs"}
}

// TestGuideDocker runs migrate-docker-20.10-28.md.
func TestGuideDocker(t *testing.T) {
	for _, driver := range guideDrivers() {
		t.Run(driver, func(t *testing.T) {
			ctx := testContext(t)
			d := newDockerGuide(t, driver)
			d.makeWeb(ctx)
			d.run(ctx, "migrate-docker-20.10-28.md")
			d.requireWeb(3)
			d.engine.Stop()
		})
	}
}

// TestGuideRefused runs migrate-docker-29-refuses.md.
func TestGuideRefused(t *testing.T) {
	for _, driver := range guideDrivers() {
		t.Run(driver, func(t *testing.T) {
			ctx := testContext(t)
			d := newDockerGuide(t, driver)
			d.makeWeb(ctx)
			d.engine.Stop()
			d.engine = nil
			d.today()
			require.NoError(t, os.WriteFile(d.config, []byte(`{"storage-driver": "zfs", "features": {"containerd-snapshotter": true}}`), 0o644))
			d.requireRefuses(ctx, "migrate-docker-29-refuses.md")
			d.run(ctx, "migrate-docker-29-refuses.md")
			d.requireWeb(2)
			d.engine.Stop()
		})
	}
}

// requireRefuses checks that the engine of today ends with the message that a document shows.
func (d *dockerGuide) requireRefuses(ctx context.Context, document string) {
	d.t.Helper()
	dir := filepath.Join(d.host.Dir, "refuses")
	require.NoError(d.t, os.Mkdir(dir, 0o755))
	cmd := exec.CommandContext(ctx, filepath.Join(d.host.Programs.Built, "dockerd"), "--containerd", d.containerd.Address,
		"--config-file", d.config, "--data-root", filepath.Join(d.host.Data, "docker"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--host", "unix://"+filepath.Join(dir, "d.sock"), "--group", "0",
		"--bridge", "none", "--iptables=false", "--ip6tables=false")
	cmd.Env = append(os.Environ(), "PATH="+d.host.Programs.Built+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.Error(d.t, err)
	text := howTo(d.t, document)
	assert.True(d.t, slices.ContainsFunc(strings.Split(string(out), "\n"), func(line string) bool {
		return strings.Contains(text, "```text\n"+line+"\n```")
	}), "%s does not show a line of: %s", document, out)
}

// requireWeb checks that the container was seen with the same changes by so many engines.
func (d *dockerGuide) requireWeb(engines int) {
	d.t.Helper()
	diffs := d.after("docker diff web")
	assert.Len(d.t, diffs, engines)
	for _, diff := range diffs {
		assert.ElementsMatch(d.t, strings.Split(diffs[0], "\n"), strings.Split(diff, "\n"))
	}
	for _, list := range d.after("docker ps --all") {
		assert.Contains(d.t, list, "web")
	}
	for _, list := range d.after("docker images --all") {
		assert.Contains(d.t, list, "example/web")
	}
	if d.t.Failed() {
		d.t.Log(d.output.String())
	}
}

// clients is the directory of the programs of a set of scripts/clients.sh.
func clients(t testing.TB, set string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join("..", "..", "..", "scripts", "clients.sh"), "path", set)
	out, err := cmd.Output()
	if err != nil {
		testfs.Skip(t, "needs the programs that scripts/clients.sh build %s makes: %v", set, err)
	}
	return strings.TrimSpace(string(out))
}

// TestGuidePodman runs migrate-podman.md.
func TestGuidePodman(t *testing.T) {
	ctx := testContext(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	p := newPodman(t, h, "overlay")
	p.run(ctx, "load", "--quiet", "--input", h.SaveImage(harness.BusyboxImage(t, h.Programs, []harness.File{{Path: "greeting", Data: "hello\n"}}), "example/web:1"))
	p.run(ctx, "tag", "localhost/example/web:1", "docker.io/example/web:1")
	p.create(ctx, recipe{name: "web", image: "docker.io/example/web:1", script: "echo changed >>/greeting"})

	cowshed := h.StartCowshed("containerd")
	containerd := h.StartContainerd("containerd", cowshed.Options())
	g := newGuide(t, h, "/var/lib/containers/storage", p.root, "/mnt/web", filepath.Join(h.Dir, "web"))
	removeNewCgroups(t, "default") // which nerdctl makes
	g.env = slices.Concat(p.env, []string{
		"PATH=" + g.bin + ":" + h.Programs.Built + ":" + os.Getenv("PATH"),
		"CONTAINERD_ADDRESS=" + containerd.Address, "CONTAINERD_NAMESPACE=default",
	})
	g.command("podman", filepath.Join(h.Programs.Debian, "usr/bin/podman"), nil)
	g.command("nerdctl", strings.Join([]string{
		filepath.Join(clients(t, "nerdctl"), "nerdctl"), "--data-root", filepath.Join(h.Data, "nerdctl"), "--cgroup-manager", "cgroupfs",
	}, " "), nil)
	g.command("cowshed", h.CowshedProgram(), map[string][]string{
		"migrate": {"--root", cowshed.Root, "--containerd-address", containerd.Address},
	})
	g.run(ctx, "migrate-podman.md")
	assert.Contains(t, g.output.String(), "\nhello\n", "of the new container")
	assert.Contains(t, strings.Join(g.after("nerdctl images"), ""), "example/web")
	assert.Equal(t, []string{"hello\nchanged"}, g.after("cat /mnt/web/greeting"))
}

// removeNewCgroups removes the cgroups of this name when the test ends, unless they are there now.
func removeNewCgroups(t *testing.T, name string) {
	t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/*")
	require.NoError(t, err)
	for _, dir := range append(dirs, "/sys/fs/cgroup") {
		dir = filepath.Join(dir, name)
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			t.Cleanup(func() {
				if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
					assert.NoError(t, err)
				}
			})
		}
	}
}
