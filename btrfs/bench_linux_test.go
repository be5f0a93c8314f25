package btrfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/testfs"
)

// BenchmarkDiffParts measures the parts of a diff of three changes, on bases of several sizes. The parts are the view
// of the layer, which is the kernel's snapshot, the hints, and the comparison.
func BenchmarkDiffParts(b *testing.B) {
	for _, files := range []int{10_000, 50_000, 200_000} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) { benchmarkDiffParts(b, files) })
	}
}

func benchmarkDiffParts(b *testing.B, files int) {
	ctx := b.Context()
	backend := open(b, testfs.Btrfs(b, testfs.WithSize(6<<30), testfs.WithSimpleQuota()), Options{})
	require.NoError(b, backend.Create(ctx, "base", cowcommon.VolumeOptions{}))
	const perDirectory = 500
	path := func(root string, i int) string {
		return filepath.Join(root, fmt.Sprint("d", i/perDirectory), fmt.Sprint("f", i))
	}
	root := tree(b, backend, "base")
	for i := range files {
		if i%perDirectory == 0 {
			require.NoError(b, os.Mkdir(filepath.Dir(path(root, i)), 0o755))
		}
		require.NoError(b, os.WriteFile(path(root, i), make([]byte, 4700), 0o600))
	}
	require.NoError(b, backend.Unmount(ctx, "base"))
	require.NoError(b, backend.Clone(ctx, "child", "base", cowcommon.VolumeOptions{}))
	root = tree(b, backend, "child")
	for i := range 3 {
		require.NoError(b, os.WriteFile(path(root, i*perDirectory), []byte("changed"), 0o600))
	}
	require.NoError(b, backend.Sync(ctx, "child"))

	var view, hint, compare time.Duration
	for b.Loop() {
		start := time.Now()
		top, err := backend.View(ctx, "child")
		require.NoError(b, err)
		view += time.Since(start)
		base, err := backend.View(ctx, "base")
		require.NoError(b, err)
		start = time.Now()
		hints, err := backend.Hints(ctx, base, top)
		require.NoError(b, err)
		hint += time.Since(start)
		start = time.Now()
		changes, err := treediff.Compare(ctx, top.Dir(), base.Dir(), hints)
		require.NoError(b, err)
		compare += time.Since(start)
		require.Len(b, changes, 6)
		require.NoError(b, top.Close())
		require.NoError(b, base.Close())
	}
	for name, sum := range map[string]time.Duration{"view": view, "hints": hint, "compare": compare} {
		b.ReportMetric(float64(sum.Microseconds())/float64(b.N), name+"-µs/op")
	}
}
