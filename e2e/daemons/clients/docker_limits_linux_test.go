package clients

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// dockerCLI is the command docker for the Docker Engine of today on Cowshed, with the image sample:1.
type dockerCLI struct {
	t       *testing.T
	words   []string
	cowshed *harness.Cowshed
	store   *harness.Store
	engine  *harness.Engine
}

func startDockerCLI(t *testing.T, ctx context.Context, api, nri bool, plugins ...string) *dockerCLI {
	t.Helper()
	h := harness.NewHost(t, testfs.Btrfs(t))
	settings, engines := []string{`max_limit = "64M"`}, []string{}
	if api {
		settings, engines = append(settings, fmt.Sprintf("docker_api = %q", "unix://"+h.EngineSocket())), append(engines, "docker")
	}
	if nri {
		settings, engines = append(settings, fmt.Sprintf("docker_nri = %q", h.EngineNRISocket())), append(engines, "docker-nri")
	}
	c := h.StartCowshed("containerd", settings...)
	containerd := h.StartContainerd("containerd", c.Options())
	engine := h.StartDocker(harness.EngineOptions{Driver: cowshed, Containerd: containerd, NRI: nri})
	d := &dockerCLI{t, dockerCommand(t, h, engine, plugins...), c, containerd.Store("moby", cowshed), engine}
	d.must(ctx, "load", "--input", h.SaveImage(harness.SampleImage(t, h.Programs), "sample:1"))
	for _, name := range engines {
		waitEngine(t, ctx, c, name)
	}
	return d
}

func (d *dockerCLI) run(ctx context.Context, args ...string) (string, error) {
	return runCommand(ctx, slices.Concat(d.words, args))
}

func (d *dockerCLI) must(ctx context.Context, args ...string) string {
	d.t.Helper()
	out, err := d.run(ctx, args...)
	require.NoError(d.t, err)
	return out
}

// make is docker run or docker create of an idle container.
func (d *dockerCLI) make(ctx context.Context, command, name string, options ...string) error {
	_, err := d.run(ctx, slices.Concat(strings.Fields(command), []string{"--name", name, "--network", "none"}, options,
		[]string{"sample:1", "sh", "-c", idleScript})...)
	return err
}

// requireLimit waits until a container has its limit, and checks that it is enforced.
func (d *dockerCLI) requireLimit(ctx context.Context, container string, mib int, want string) {
	d.t.Helper()
	id := d.must(ctx, "inspect", "--format", "{{.Id}}", container)
	require.EventuallyWithT(d.t, func(t *assert.CollectT) {
		info, err := d.store.Snapshots().Stat(d.store.Context(ctx), id)
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprint(mib<<20), info.Labels[snapshots.LabelSnapshotMaxSize])
	}, testfs.Patience, 20*time.Millisecond)
	out, err := d.run(ctx, "exec", container, "/bin/sh", "-c", write6)
	requireWritten(d.t, out, err, want)
	require.Contains(d.t, d.must(ctx, "exec", container, "/bin/sh", "-c", makeRoom), "room")
}

// compose makes containers of a compose file, whose limits come from storage_opt and from labels.
func (d *dockerCLI) compose(ctx context.Context, api bool) {
	d.t.Helper()
	const service = `  %s:
    image: sample:1
    network_mode: none
    command: [sh, -c, %q]
    %s
`
	text := "services:\n" + fmt.Sprintf(service, "label", idleScript, `labels: {cowshed.size: 4M}`)
	if api {
		text += fmt.Sprintf(service, "option", idleScript, `storage_opt: {size: 5M}`)
	}
	file := filepath.Join(d.t.TempDir(), "compose.yaml")
	require.NoError(d.t, os.WriteFile(file, []byte(text), 0o644))
	d.must(ctx, "compose", "--file", file, "--project-name", "limits", "up", "--detach")
	d.requireLimit(ctx, "limits-label-1", 4, overLimit)
	if api {
		d.requireLimit(ctx, "limits-option-1", 5, overLimit)
	}
	d.must(ctx, "compose", "--file", file, "--project-name", "limits", "down", "--timeout", "1")
}

// TestDockerCommandLimits: docker run with the option or the label limits a container. The option comes before the label. Bad
// values are refused, in words that docker prints. The long variant has Compose, and each of the two ways alone.
func TestDockerCommandLimits(t *testing.T) {
	testfs.CheckLeaks(t)
	ways := []struct {
		name     string
		api, nri bool
	}{{"both", true, true}, {"docker_api", true, false}, {"docker_nri", false, true}}
	var plugins []string
	if testfs.Long() {
		plugins = []string{"compose"}
	} else {
		ways = ways[:1]
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			ctx := bounded(t)
			d := startDockerCLI(t, ctx, way.api, way.nri, plugins...)
			require.NoError(t, d.make(ctx, "run --detach", "label", "--label", "cowshed.size=4M"))
			d.requireLimit(ctx, "label", 4, overLimit)
			if way.api {
				require.NoError(t, d.make(ctx, "run --detach", "option", "--storage-opt", "size=5M"))
				d.requireLimit(ctx, "option", 5, overLimit)
				require.NoError(t, d.make(ctx, "run --detach", "first", "--storage-opt", "size=12M", "--label", "cowshed.size=4M"))
				d.requireLimit(ctx, "first", 12, fits)
				d.requireBadOption(ctx)
			}
			if way.nri {
				waitEngine(t, ctx, d.cowshed, "docker-nri") // the engine gives up a plugin that is slow
				err := d.make(ctx, "run --detach", "bad", "--label", "cowshed.size=65M")
				require.ErrorContains(t, err, `cowshed: label cowshed.size: invalid argument: size "65M" is more than the 64MiB that the configuration`)
				assert.Empty(t, d.must(ctx, "ps", "--all", "--quiet", "--filter", "name=bad"), "nothing is left of it")
			}
			if len(plugins) > 0 {
				d.compose(ctx, way.api)
			}
			d.clear(ctx)
		})
	}
}

// requireBadOption checks that a container with a bad size does not start, until it has a limit.
func (d *dockerCLI) requireBadOption(ctx context.Context) {
	d.t.Helper()
	require.NoError(d.t, d.make(ctx, "create", "bad", "--storage-opt", "size=much"))
	require.EventuallyWithT(d.t, func(t *assert.CollectT) {
		assert.ErrorContains(t, d.cowshed.Command(ctx, "doctor", "--containerd", "--config", d.cowshed.Config), "container bad of docker")
	}, testfs.Patience, 20*time.Millisecond)
	_, err := d.run(ctx, "start", "bad")
	require.ErrorContains(d.t, err, `Error response from daemon: `)
	require.ErrorContains(d.t, err, `cowshed does not let container bad be started or mounted: --storage-opt size: invalid argument: size "much": must be a number of bytes`)
	require.NoError(d.t, d.cowshed.Command(ctx, "limit", "docker:bad", "4M", "--config", d.cowshed.Config))
	d.must(ctx, "start", "bad")
	d.requireLimit(ctx, "bad", 4, overLimit)
	d.must(ctx, "rm", "--force", "bad")
}

// clear removes all, and checks that nothing stays.
func (d *dockerCLI) clear(ctx context.Context) {
	d.t.Helper()
	require.NoError(d.t, d.engine.RemoveAllContainers(ctx))
	require.NoError(d.t, d.engine.Prune(ctx))
	requireEmpty(d.t, d.store)
}

// TestDockerCommandRaces counts how often docker run starts a container before its limit is set, and how often one with a bad size.
// In each case the limit comes.
func TestDockerCommandRaces(t *testing.T) {
	if !testfs.Long() {
		return
	}
	testfs.CheckLeaks(t)
	const containers = 100
	ctx := bounded(t)
	d := startDockerCLI(t, ctx, true, false)
	var lead []time.Duration // of the limit before the start
	lost := 0
	for n := range containers {
		name := fmt.Sprint("c", n)
		require.NoError(t, d.make(ctx, "run --detach", name, "--storage-opt", "size=4M"))
		words := strings.Fields(d.must(ctx, "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", name))
		started, err := time.Parse(time.RFC3339Nano, words[1])
		require.NoError(t, err)
		before := started.Sub(d.limitedAt(ctx, words[0]))
		lead = append(lead, before)
		if before < 0 {
			lost++
		}
		d.must(ctx, "rm", "--force", name)
	}
	slices.Sort(lead)
	t.Logf("%d of %d containers started before their limits; limits came before the start by: least %s, median %s, most %s", lost, containers,
		lead[0], lead[containers/2], lead[containers-1])

	refused := 0
	for n := range containers {
		name := fmt.Sprint("bad", n)
		if err := d.make(ctx, "run --detach", name, "--storage-opt", "size=much"); err != nil {
			require.ErrorContains(t, err, "cowshed does not let container")
			refused++
		}
		d.must(ctx, "rm", "--force", name)
	}
	t.Logf("%d of %d containers with a bad size were refused", refused, containers)
	d.clear(ctx)
}

// limitedAt waits for the line of the log with the limit of a container, and returns its time.
func (d *dockerCLI) limitedAt(ctx context.Context, id string) time.Time {
	d.t.Helper()
	for {
		for line := range strings.Lines(d.cowshed.Log()) {
			if strings.Contains(line, "id="+id) && strings.Contains(line, "outcome=set") {
				text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
				at, err := time.Parse(time.RFC3339Nano, text)
				require.NoError(d.t, err)
				return at
			}
		}
		select {
		case <-ctx.Done():
			require.NoError(d.t, ctx.Err(), "container %s has no limit", id)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
