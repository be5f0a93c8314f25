package daemons

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
	"github.com/cowshed/cowshed/migrate/tocontainerd"
)

// TestMigrateToDocker moves an image and a container of Debian's engine to the engine of today, and back.
func TestMigrateToDocker(t *testing.T) {
	for _, driver := range []string{"btrfs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			testfs.CheckLeaks(t)
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			sample := h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1")

			old := h.StartDebianDocker(harness.EngineOptions{Driver: driver})
			require.NoError(t, old.Load(ctx, sample))
			var limit map[string]string
			if driver == "btrfs" {
				limit = map[string]string{"size": "512m"}
			}
			_, err := old.RunContainer(ctx, "web", "cowshed/sample:1", harness.ChangeScript, limit)
			require.NoError(t, err)
			before := describe(t, ctx, old, "web")
			image, err := old.ImageInspect(ctx, "cowshed/sample:1")
			require.NoError(t, err)
			old.Stop()

			cow := h.StartCowshed("containerd")
			containerd := h.StartContainerd("containerd", cow.Options())
			var log bytes.Buffer
			// migrating calls do with an open migration, which keeps engines out until it is closed.
			migrating := func(do func(*migrate.Migration)) {
				source, err := dockerroot.Open(ctx, dockerroot.Options{Dir: old.Root, Driver: driver})
				require.NoError(t, err)
				defer func() { require.NoError(t, source.Close()) }()
				state := filepath.Join(h.Data, "migration")
				target, err := tocontainerd.New(ctx, tocontainerd.Options{
					Address: containerd.Address, Namespace: tocontainerd.Moby, Snapshotter: harness.CowshedSnapshotter,
					DockerRoot: old.Root, StateDir: migrate.TargetState(state),
					Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
				})
				require.NoError(t, err)
				defer func() { require.NoError(t, target.Close()) }()
				do(migrate.New(source, target, migrate.Options{Source: old.Root, Target: "containerd", State: state}))
			}
			migrating(func(m *migrate.Migration) {
				result, err := m.Run(ctx, nil)
				requireMoved(t, err)
				assert.NotContains(t, log.String(), "not adopted")
				assert.Equal(t, map[string]int{"layer": len(image.RootFS.Layers) + 2, "image": 1, "container": 1}, result.Made)
			})

			now := h.StartDocker(harness.EngineOptions{Driver: harness.CowshedSnapshotter, Containerd: containerd})
			images, err := now.Images(ctx)
			require.NoError(t, err)
			assert.Equal(t, []string{"cowshed/sample:1"}, images)
			assert.Equal(t, before, describe(t, ctx, now, "web"))
			moved, err := now.ImageInspect(ctx, "cowshed/sample:1")
			require.NoError(t, err)
			assert.Equal(t, image.RootFS.Layers, moved.RootFS.Layers)
			_, err = now.ImageInspect(ctx, image.ID)
			require.ErrorIs(t, err, errdefs.ErrNotFound, "Docker 29 knows an image by its manifest alone")
			migrating(func(m *migrate.Migration) {
				_, err := m.Verify(ctx, nil)
				requireMoved(t, err)
			})

			require.NoError(t, now.StartContainer(ctx, "web"))
			require.NoError(t, now.Commit(ctx, "web", "cowshed/committed:1"))
			committed, err := now.RunContainer(ctx, "again", "cowshed/committed:1", harness.CheckScript, nil)
			require.NoError(t, err)
			assert.Equal(t, harness.Result{Output: "as committed\n"}, committed)
			require.NoError(t, now.Remove(ctx, "again"))
			migrating(func(m *migrate.Migration) {
				_, err := m.Undo(ctx, nil)
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "the engine runs")
			})
			now.Stop()
			migrating(func(m *migrate.Migration) {
				_, err := m.Undo(ctx, nil)
				requireMoved(t, err)
			})
			back := h.StartDebianDocker(harness.EngineOptions{Driver: driver})
			assert.Equal(t, before, describe(t, ctx, back, "web"))
			require.NoError(t, back.StartContainer(ctx, "web"))
			back.Stop()
		})
	}
}

// requireMoved fails the test with each problem of an error.
func requireMoved(t *testing.T, err error) {
	t.Helper()
	var partial *migrate.PartialError
	if errors.As(err, &partial) {
		for _, p := range partial.Problems {
			t.Errorf("%s %s: %v", p.What, p.ID, p.Err)
		}
	}
	require.NoError(t, err)
}

// described has the answers of "docker ps", "diff" and "inspect" about a container.
type described struct {
	ID, Name string
	Code     int
	Changes  []string
}

func describe(t *testing.T, ctx context.Context, e *harness.Engine, name string) described {
	t.Helper()
	c, err := e.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	require.NoError(t, err)
	changes, err := e.Diff(ctx, name)
	require.NoError(t, err)
	slices.Sort(changes)
	return described{c.Container.ID, c.Container.Name, c.Container.State.ExitCode, changes}
}
