package sharedroot

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// cpuTime reports the time of the processor that the last run of a benchmark takes, which other work beside it changes less.
func cpuTime(b *testing.B) (end func()) {
	b.Helper()
	runtime.LockOSThread()
	used := func() time.Duration {
		var usage unix.Rusage
		require.NoError(b, unix.Getrusage(unix.RUSAGE_THREAD, &usage))
		return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	begin := used()
	return func() {
		b.ReportMetric(float64((used()-begin).Microseconds())/1000, "cpu-ms/last")
		runtime.UnlockOSThread()
	}
}

// BenchmarkFold folds a volume with so many changes, in directories of a hundred: half of them new files, the others
// files of the lower that were changed. The part "renames" is the bare moving of the same files into a plain clone.
func BenchmarkFold(b *testing.B) {
	for _, changes := range []int{3, 10_000} {
		h := newHome(b, testfs.Btrfs(b, testfs.WithSize(2<<30))+"/home")
		h.create("lower")
		dir := func(root string, i int) string { return fmt.Sprintf("%s/%d", root, i/100) }
		file := func(i int) string { return fmt.Sprint("/file-", i) }
		for i := range changes {
			require.NoError(b, os.MkdirAll(dir(h.path("lower"), i), 0o755))
			if i%2 == 0 {
				require.NoError(b, os.WriteFile(dir(h.path("lower"), i)+file(i), nil, 0o644))
			}
		}
		h.seal("lower")
		h.prepare("v", "lower")
		view, unmount := h.mount("v", "lower")
		for i := range changes {
			require.NoError(b, os.WriteFile(dir(view, i)+file(i), []byte("new"), 0o644))
		}
		unmount()
		run := 0
		measure := func(name string, act func(b *testing.B, volume string)) {
			b.Run(fmt.Sprintf("%d/%s", changes, name), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					run++
					volume := fmt.Sprint("v-", run)
					h.clone(volume, "v")
					b.StartTimer()
					act(b, volume)
				}
			})
		}
		measure("fold", func(b *testing.B, volume string) {
			b.Helper()
			root := h.open(volume)
			defer cpuTime(b)()
			require.NoError(b, fold(b.Context(), root, nil))
		})
		measure("renames", func(b *testing.B, volume string) {
			b.Helper()
			defer cpuTime(b)()
			var from, to int
			for i := range changes {
				if i%100 == 0 {
					if i > 0 {
						unix.Close(from)
						unix.Close(to)
					}
					var err error
					from, err = unix.Open(dir(h.path(volume)+"/.cowshed/upper", i), unix.O_PATH, 0)
					require.NoError(b, err)
					to, err = unix.Open(dir(h.path(volume), i), unix.O_PATH, 0)
					require.NoError(b, err)
				}
				if err := unix.Renameat(from, file(i)[1:], to, file(i)[1:]); err != nil {
					b.Fatal(err)
				}
			}
			unix.Close(from)
			unix.Close(to)
		})
	}
}
