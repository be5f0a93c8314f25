package live_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// benchStyles runs a benchmark for layers of each root style.
func benchStyles(b *testing.B, bench func(b *testing.B, style cowcommon.RootStyle)) {
	for _, style := range []cowcommon.RootStyle{cowcommon.SnapshotRoot, cowcommon.SharedRoot} {
		b.Run(string(style), func(b *testing.B) { bench(b, style) })
	}
}

// BenchmarkFork forks a layer of 5,000 files that is written to, beside the bare calls of the kernel: one snapshot, and two,
// of the layer and of that snapshot. Likewise 100 forks by one call. It reports percentiles.
func BenchmarkFork(b *testing.B) { benchStyles(b, benchFork) }

func benchFork(b *testing.B, style cowcommon.RootStyle) {
	mnt, backend, layers := benchHome(b, style)
	dir, err := backend.Mount(b.Context(), "web", "")
	require.NoError(b, err)
	defer func() { require.NoError(b, backend.Unmount(b.Context(), "web")) }()
	bare, err := os.Open(mnt)
	require.NoError(b, err)
	defer bare.Close()
	source, err := os.Open(filepath.Join(mnt, "home/subvolumes/web"))
	require.NoError(b, err)
	defer source.Close()

	i := 0
	change := func() {
		i++
		require.NoError(b, os.WriteFile(filepath.Join(dir, "written"), []byte(fmt.Sprint(i)), 0o644))
	}
	snapshot := func(name string, of int, readOnly bool) {
		require.NoError(b, btrfsctl.Snapshot(int(bare.Fd()), name, of, readOnly, nil))
	}
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"one-call", func() { snapshot(fmt.Sprintf("one-%d", i), int(source.Fd()), false) }},
		{"two-calls", func() {
			name := fmt.Sprintf("two-%d", i)
			snapshot(name, int(source.Fd()), true)
			of, err := os.Open(filepath.Join(mnt, name))
			require.NoError(b, err)
			defer of.Close()
			snapshot(name+".fork", int(of.Fd()), false)
		}},
		{"backend", func() {
			name := fmt.Sprintf("backend-%d", i)
			require.NoError(b, cowcommon.Fork(b.Context(), backend, "web", name, []string{name + ".fork"}, cowcommon.VolumeOptions{}))
		}},
		{"bare-100", func() {
			for n := range 100 {
				snapshot(fmt.Sprintf("bare-%d-%d", i, n), int(source.Fd()), false)
			}
		}},
		{"live-100", func() {
			names := make([]string, 100)
			for n := range names {
				names[n] = fmt.Sprintf("hundred-%d-%d", i, n)
			}
			_, err := layers.Fork(b.Context(), "web", names, live.ForkOptions{})
			require.NoError(b, err)
		}},
		{"live", func() {
			_, err := layers.Fork(b.Context(), "web", []string{fmt.Sprintf("live-%d", i)}, live.ForkOptions{})
			require.NoError(b, err)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			measure(b, change, c.do)
		})
	}
}

// benchHome has the layer web, made from one with 5,000 files.
func benchHome(b *testing.B, style cowcommon.RootStyle) (mnt string, backend cowcommon.Backend, layers *live.Layers) {
	b.Helper()
	mnt = testfs.Btrfs(b)
	dir := filepath.Join(mnt, "home")
	var err error
	backend, err = btrfs.Open(b.Context(), dir, btrfs.Options{})
	require.NoError(b, err)
	if style == cowcommon.SharedRoot {
		backend, err = sharedroot.New(b.Context(), backend, dir, sharedroot.Options{})
		require.NoError(b, err)
	}
	b.Cleanup(func() { require.NoError(b, backend.Close()) })
	require.NoError(b, backend.Create(b.Context(), "distro", cowcommon.VolumeOptions{}))
	writeFiles(b, backend, "distro", 5000, "1")
	require.NoError(b, backend.Clone(b.Context(), "web", "distro", cowcommon.VolumeOptions{RootStyle: style}))
	return mnt, backend, live.New(backend, filepath.Join(mnt, "live"), nil)
}

func writeFiles(b *testing.B, backend cowcommon.Backend, layer string, n int, content string) {
	b.Helper()
	dir, err := backend.Mount(b.Context(), layer, "")
	require.NoError(b, err)
	for i := range n {
		require.NoError(b, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(content), 0o644))
	}
	require.NoError(b, backend.Unmount(b.Context(), layer))
}

// measure reports percentiles of the time that do takes after each prepare.
func measure(b *testing.B, prepare, do func()) {
	b.Helper()
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		prepare()
		b.StartTimer()
		start := time.Now()
		do()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkThreeChanges takes snapshots of a layer of 5,000 files, rolls it back and merges forks, with three changed files.
func BenchmarkThreeChanges(b *testing.B) { benchStyles(b, benchThreeChanges) }

func benchThreeChanges(b *testing.B, style cowcommon.RootStyle) {
	_, backend, layers := benchHome(b, style)
	_, err := layers.Snapshot(b.Context(), "web", "kept", live.SnapshotOptions{})
	require.NoError(b, err)
	i := 0
	change := func() {
		i++
		writeFiles(b, backend, "web", 3, fmt.Sprint(i))
	}
	b.Run("snapshot", func(b *testing.B) {
		measure(b, change, func() {
			_, err := layers.Snapshot(b.Context(), "web", "", live.SnapshotOptions{})
			require.NoError(b, err)
		})
	})
	for name, opts := range map[string]live.RollbackOptions{"rollback": {}, "rollback-live": {Live: true}} {
		b.Run(name, func(b *testing.B) {
			measure(b, change, func() {
				_, err := layers.Rollback(b.Context(), "web", "kept", opts)
				require.NoError(b, err)
			})
		})
	}
	for name, opts := range map[string]live.MergeOptions{"merge": {}, "merge-live": {Live: true}} {
		b.Run(name, func(b *testing.B) {
			fork := ""
			measure(b, func() {
				i++
				fork = fmt.Sprintf("fork-%d", i)
				_, err := layers.Fork(b.Context(), "web", []string{fork}, live.ForkOptions{})
				require.NoError(b, err)
				writeFiles(b, backend, fork, 3, fmt.Sprint(i))
			}, func() {
				_, err := layers.Merge(b.Context(), fork, opts)
				require.NoError(b, err)
			})
		})
	}
}

// BenchmarkForkBeside forks a layer beside the records of a few and of many forks of other layers. It reports percentiles.
func BenchmarkForkBeside(b *testing.B) {
	for _, others := range []int{10, 10_000} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			mnt, _, layers := benchHome(b, cowcommon.SnapshotRoot)
			_, err := layers.Fork(b.Context(), "web", []string{"first"}, live.ForkOptions{})
			require.NoError(b, err)
			for n := range others {
				volume := fmt.Sprintf("moment-%012x-%s", n*7919, "aaaaaaaaaaaa")
				record := fmt.Sprintf(`{"version": 1, "volume": %q, "layer": "other", "forks": [{"name": "of-%d"}]}`, volume, n)
				require.NoError(b, os.WriteFile(filepath.Join(mnt, "live/moments", volume+".json"), []byte(record), 0o600))
			}
			i := 0
			measure(b, func() { i++ }, func() {
				_, err := layers.Fork(b.Context(), "web", []string{fmt.Sprintf("fork-%d", i)}, live.ForkOptions{})
				require.NoError(b, err)
			})
		})
	}
}
