package migrate

import (
	"context"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// toPlugin migrates the scenario to Cowshed's graph driver plugin, uses it with the same engine, and takes it back. It
// returns the record of that engine. Where there is no registry, nothing is pushed.
func toPlugin(t *testing.T, ctx context.Context, s scenario, registry string) record {
	h := s.host
	m := s.plugin()
	m.run(t, ctx, "plan")
	m.run(t, ctx, "run")
	m.run(t, ctx, "verify")

	cowshed := h.StartCowshed("containerd")
	e := h.StartDebianDocker(harness.EngineOptions{Driver: cowshed.Plugin})
	info, err := e.Info(ctx, client.InfoOptions{})
	require.NoError(t, err)
	require.Equal(t, cowshed.Plugin, info.Info.Driver)
	after := recordAll(t, ctx, e, sameDigest, everything)
	requireSame(t, s.before, after, true)
	if registry != "" {
		requirePushes(t, ctx, e, registry, after)
	}
	requireLimit(t, ctx, e, s)
	e.Stop()
	cowshed.Stop()

	m.run(t, ctx, "undo")
	requireOld(t, ctx, s, m)
	return after
}

// requireLimit checks that the container with a limit still has it.
func requireLimit(t *testing.T, ctx context.Context, e *harness.Engine, s scenario) {
	t.Helper()
	if s.limits {
		result, err := e.Exec(ctx, "limited", `dd if=/dev/urandom of=/big bs=1M count=64 conv=fsync; rm -f /big`)
		require.NoError(t, err)
		assert.Contains(t, result.Output, "Disk quota exceeded")
	}
}

// requireOld checks that the old engine with its old driver has all that it had, and that a migration is refused meanwhile.
func requireOld(t *testing.T, ctx context.Context, s scenario, m migration) {
	t.Helper()
	s.engine.Daemon.Start()
	requireSame(t, s.before, recordOf(t, ctx, s.engine, sameDigest), true)
	for _, step := range []string{"plan", "run"} {
		_, err := m.try(ctx, step)
		require.ErrorContains(t, err, "stop the engine", "the engine runs")
	}
	s.engine.Stop()
}

// plugin is the migration of the scenario to the plugin.
func (s scenario) plugin() migration {
	return migration{s.host.CowshedProgram(), []string{
		"--from", s.engine.Root, "--to", "plugin", "--plugin-name", s.host.PluginName(),
	}}
}
