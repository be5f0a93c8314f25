package daemons

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// longBuild is the context of a build with several steps of each kind. No layer is the same as with another number.
func longBuild(n int) []harness.File {
	const rounds = 3
	dockerfile := "FROM cowshed/sample:1\n"
	for i := range rounds {
		dockerfile += fmt.Sprintf("COPY file /copied%d\nRUN mkdir /step%d && cp -r /files /step%d && echo %d >/step%d/number\n", i, i, i, n, i)
	}
	return []harness.File{
		{Path: "file", Data: fmt.Sprintf("copied %d\n", n)},
		{Path: "Dockerfile", Data: dockerfile},
	}
}

// TestDockerKillUnderBuild kills Cowshed at any moment of a build, several times, and restarts the engine after half of
// the builds. A build may fail; the next one does not, and nothing stays that the engine has not lost track of.
func TestDockerKillUnderBuild(t *testing.T) {
	inEach(t, onCowshed(), killUnderBuild)
}

// killUnderBuild is TestDockerKillUnderBuild in one engine.
func killUnderBuild(t *testing.T, ctx context.Context, _ engine, e engineHost) {
	builders := []build.BuilderVersion{build.BuilderV1, build.BuilderBuildKit}
	kills := 4
	if e.containerd != nil {
		kills = 2 // TestContainerdLoadKilled has more
	}
	var took []time.Duration
	for n, builder := range builders {
		begun := time.Now()
		require.NoError(t, e.Build(ctx, "cowshed/whole", longBuild(n), builder))
		took = append(took, time.Since(begun))
	}
	for n := range kills {
		builder, restart := n%len(builders), n%4 < 2
		ctx = contextOf(t, e.fs.timeout) // each build has as much time
		ended := make(chan error, 1)
		go func() { ended <- e.Build(ctx, "cowshed/killed", longBuild(len(builders)+n), builders[builder]) }()
		moment := rand.N(took[builder])
		time.Sleep(moment) // any moment will do
		e.cowshed.Kill()
		e.cowshed.Start()
		e.reconnect(ctx)
		err := <-ended
		t.Logf("Cowshed was killed after %s of %s, the engine restarted: %t; the build: %v", moment, took[builder], restart, err)
		if e.containerd == nil {
			// One request of a build at a time makes layers: a container's and the one below it.
			most := 2
			if err == nil {
				most = 0
			}
			lost := removeLost(t, ctx, e)
			assert.LessOrEqual(t, len(lost), most, "%q", lost)
		}
		if restart {
			e.Restart()
		}
		require.NoError(t, buildAndRun(ctx, e, n, builders[builder]))
	}
	// BuildKit forgets layers that it could not commit, in leases of containerd's, or could not unmount, in the
	// engine.
	require.NoError(t, e.RemoveAllContainers(ctx))
	require.NoError(t, e.Prune(ctx))
	e.Stop()
	if e.containerd != nil {
		store := e.containerd.Store("moby", e.driver)
		require.NoError(t, store.RemoveLeases(store.Context(ctx)))
	} else {
		lost, err := e.LostMounts()
		require.NoError(t, err)
		t.Logf("lost with mounts: %q", lost)
		require.NoError(t, e.cowshed.RemoveLayers(ctx, e.Engine, lost...))
	}
	e.Daemon.Start()
}

// removeLost removes the layers that Debian's engine has lost track of, as an operator does, and returns their ids. The
// engine is not making any, but may still be removing some.
func removeLost(t *testing.T, ctx context.Context, e engineHost) (lost []string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var err error
		lost, err = e.cowshed.LostLayers(ctx, e.Engine)
		require.NoError(c, err)
		require.NoError(c, e.cowshed.RemoveLayers(ctx, e.Engine, lost...))
	}, e.fs.soon, 100*time.Millisecond)
	return lost
}

// TestDockerKillUnderCreate kills Cowshed while containers are made and removed. Only layers that the engine has lost
// track of stay: where making a container failed, its layer and the layer below it.
func TestDockerKillUnderCreate(t *testing.T) {
	const (
		kills      = 6
		clients    = 3
		containers = 4 // of each client
	)
	inEach(t, []engine{{"debian-cowshed", "", onPlugin()}}, func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
		for n := range kills {
			var failed atomic.Int64
			var g errgroup.Group
			for i := range clients {
				g.Go(func() error {
					for j := range containers {
						name := fmt.Sprintf("c%d-%d-%d", n, i, j)
						if err := e.CreateContainer(ctx, name, "cowshed/sample:1", "true", nil); err != nil {
							failed.Add(1)
							continue
						}
						if err := e.Remove(ctx, name); err != nil && !strings.Contains(err.Error(), "failed to remove root filesystem") {
							return err
						}
					}
					return nil
				})
			}
			time.Sleep(rand.N(500 * time.Millisecond)) // no moment is special
			e.cowshed.Kill()
			e.cowshed.Start()
			require.NoError(t, g.Wait())

			lost := removeLost(t, ctx, e)
			t.Logf("%d containers could not be made, lost %q", failed.Load(), lost)
			var below []string
			for _, id := range lost {
				if container, ok := strings.CutSuffix(id, "-init"); ok {
					below = append(below, container)
				}
			}
			assert.LessOrEqual(t, len(below), int(failed.Load()))
			for _, id := range lost {
				assert.Contains(t, below, strings.TrimSuffix(id, "-init"))
			}
		}
	})
}

// TestDockerLost makes a container whose limit is too low for the engine's files below it, with each driver of
// Debian's engine. The engine never removes a layer if making the container then failed.
func TestDockerLost(t *testing.T) {
	list := []engine{{"debian-cowshed", "4k", onPlugin()}, {"debian-btrfs", "4k", onGraphDriver("btrfs")}}
	inEach(t, list, func(t *testing.T, ctx context.Context, s engine, e engineHost) {
		err := e.CreateContainer(ctx, "one", "cowshed/sample:1", "true", map[string]string{"size": s.size})
		require.ErrorContains(t, err, "quota exceeded")
		e.Restart()
		require.NoError(t, e.RemoveAllContainers(ctx))
		require.NoError(t, e.Prune(ctx))
		left := e.left(ctx, t)
		require.Len(t, left, 1)
		assert.True(t, strings.HasSuffix(left[0], "-init"), left[0])
		if e.cowshed == nil {
			out, err := exec.Command("btrfs", "subvolume", "delete", filepath.Join(e.host.Data, left[0])).CombinedOutput()
			require.NoError(t, err, "%s", out)
			return
		}
		assert.Equal(t, []string{filepath.Base(left[0])}, removeLost(t, ctx, e))
	})
}
