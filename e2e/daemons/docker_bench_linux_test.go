package daemons

import (
	"context"
	"fmt"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// BenchmarkDockerManyFiles measures operations of Debian's engine on Cowshed's plugin and on the engine's own btrfs
// driver. The container has an image of 50,000 files, of which three have changed.
func BenchmarkDockerManyFiles(b *testing.B) {
	for _, name := range []string{"cowshed", "btrfs"} {
		b.Run(name, func(b *testing.B) {
			h := harness.NewHost(b, testfs.Btrfs(b))
			driver := name
			var cowshed *harness.Cowshed
			if name == "cowshed" {
				cowshed = h.StartCowshed("containerd")
				driver = cowshed.Plugin
			}
			m := manyFiles{Engine: h.StartDebianDocker(harness.EngineOptions{Driver: driver}), data: h.Data}
			ctx := b.Context()
			image := harness.BusyboxImage(b, h.Programs, harness.ManyFiles(50_000))
			require.NoError(b, m.Load(ctx, h.SaveImage(image, "cowshed/many:1")))
			m.change(b, ctx, "one")
			_, err := m.Diff(ctx, "one") // caches are warm from now on
			require.NoError(b, err)

			b.Run("diff", func(b *testing.B) { m.diff(b, ctx) })
			b.Run("commit", func(b *testing.B) { m.commit(b, ctx) })
			b.Run("rm", func(b *testing.B) { m.remove(b, ctx) })

			if cowshed != nil {
				native, walked, err := cowshed.Comparisons(ctx, "docker")
				require.NoError(b, err)
				require.Positive(b, native)
				require.Empty(b, walked)
			}
		})
	}
}

// manyFiles is an engine with the image cowshed/many:1 and its container "one".
type manyFiles struct {
	*harness.Engine
	data string
}

// change makes a container with three changes. Nothing of them is left to be written out when it returns.
func (m manyFiles) change(b *testing.B, ctx context.Context, name string) {
	b.Helper()
	result, err := m.RunContainer(ctx, name, "cowshed/many:1", fewChangesScript, nil)
	require.NoError(b, err)
	require.Equal(b, harness.Result{Output: "changed\n"}, result)
	testfs.Sync(b, m.data)
}

func (m manyFiles) diff(b *testing.B, ctx context.Context) {
	for b.Loop() {
		changes, err := m.Diff(ctx, "one")
		require.NoError(b, err)
		require.Equal(b, fewChangedPaths, changes)
	}
}

func (m manyFiles) commit(b *testing.B, ctx context.Context) {
	for b.Loop() {
		require.NoError(b, m.Commit(ctx, "one", "cowshed/many:2"))
		// The engine would find that it has the layer already.
		b.StopTimer()
		_, err := m.ImageRemove(ctx, "cowshed/many:2", client.ImageRemoveOptions{PruneChildren: true})
		require.NoError(b, err)
		testfs.WaitDeleted(b, m.data)
		b.StartTimer()
	}
}

func (m manyFiles) remove(b *testing.B, ctx context.Context) {
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		name := fmt.Sprintf("removed%d", n)
		m.change(b, ctx, name)
		testfs.WaitDeleted(b, m.data)
		b.StartTimer()
		require.NoError(b, m.Remove(ctx, name))
	}
}
