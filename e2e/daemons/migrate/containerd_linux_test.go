package migrate

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// toDocker29 migrates the scenario to containerd for Docker Engine of today, uses it there, and takes it back. It
// returns the record of that engine.
func toDocker29(t *testing.T, ctx context.Context, s scenario, registry string) record {
	h := s.host
	containerd, store, m := s.containerd()
	m.run(t, ctx, "plan")
	m.run(t, ctx, "run")
	m.run(t, ctx, "verify")

	e := h.StartDocker(harness.EngineOptions{Driver: harness.CowshedSnapshotter, Containerd: containerd})
	info, err := e.Info(ctx, client.InfoOptions{})
	require.NoError(t, err)
	require.Equal(t, harness.CowshedSnapshotter, info.Info.Driver)
	after := recordAll(t, ctx, e, configIn(t, ctx, store), everything)
	requireSame(t, s.before, after, false)
	requirePushes(t, ctx, e, registry, after)
	requireLimit(t, ctx, e, s)
	requireCommit(t, ctx, e)
	_, err = m.try(ctx, "undo")
	require.ErrorContains(t, err, "stop the engine")
	e.Stop()

	m.run(t, ctx, "undo")
	requireNothing(t, ctx, store)
	requireOld(t, ctx, s, m)
	return after
}

// requireCommit has an engine make an image of a container that has come along, and a container of the image.
func requireCommit(t *testing.T, ctx context.Context, e *harness.Engine) {
	t.Helper()
	require.NoError(t, e.Commit(ctx, "changed", "cowtest/changed:1"))
	committed, err := e.RunContainer(ctx, "again", "cowtest/changed:1", harness.CheckScript, nil)
	require.NoError(t, err)
	require.Equal(t, harness.Result{Output: "as committed\n"}, committed)
	require.NoError(t, e.Remove(ctx, "again"))
	_, err = e.ImageRemove(ctx, "cowtest/changed:1", client.ImageRemoveOptions{})
	require.NoError(t, err)
}

// containerd starts containerd on Cowshed, for the migration of the scenario to its namespace for Docker.
func (s scenario) containerd() (*harness.Containerd, *harness.Store, migration) {
	cowshed := s.host.StartCowshed("containerd")
	containerd := s.host.StartContainerd("containerd", cowshed.Options())
	return containerd, containerd.Store("moby", harness.CowshedSnapshotter), migration{s.host.CowshedProgram(), []string{
		"--root", cowshed.Root, "--from", s.engine.Root, "--to", "containerd", "--containerd-address", containerd.Address,
	}}
}

// configIn returns a function that finds the digest of an image's config by the digest of its manifest.
func configIn(t *testing.T, ctx context.Context, store *harness.Store) func(id string) digest.Digest {
	return func(id string) digest.Digest {
		data, err := content.ReadBlob(store.Context(ctx), store.ContentStore(), ocispec.Descriptor{Digest: digest.Digest(id)})
		require.NoError(t, err)
		var manifest ocispec.Manifest
		require.NoError(t, json.Unmarshal(data, &manifest))
		return manifest.Config.Digest
	}
}
