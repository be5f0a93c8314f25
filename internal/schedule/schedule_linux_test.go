package schedule

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// host has a home with the layer web, and a Runner for it. The time in a bubble begins at a full hour.
type host struct {
	*live.Layers
	home    Home
	backend cowcommon.Backend
	broken  atomic.Bool // Use fails
	log     safeLog
}

// safeLog is a log that can be read while the Runner runs.
type safeLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *safeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newHost(t *testing.T) *host {
	t.Helper()
	mnt := testfs.Btrfs(t)
	h := &host{home: Home{Place: "store", Dir: filepath.Join(mnt, "live")}}
	var err error
	h.backend, err = btrfs.Open(t.Context(), filepath.Join(mnt, "home"), btrfs.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.backend.Close()) })
	h.Layers = live.New(h.backend, h.home.Dir, slog.New(slog.DiscardHandler))
	h.home.Use = func(ctx context.Context, do func(context.Context, *live.Layers) error) error {
		if h.broken.Load() {
			return errors.New("cannot be opened")
		}
		return do(ctx, h.Layers)
	}
	require.NoError(t, h.backend.Create(t.Context(), "web", cowcommon.VolumeOptions{}))
	return h
}

// run runs a Runner until stop is called.
func (h *host) run(t *testing.T) (r *Runner, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r = New(func() ([]Home, error) { return []Home{h.home}, nil }, slog.New(slog.NewTextHandler(&h.log, nil)))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	return r, func() {
		cancel()
		<-ended
	}
}

// sleep lets time pass, and waits for the Runner.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (h *host) set(t *testing.T, s live.Schedule) {
	t.Helper()
	s.Layer = "web"
	require.NoError(t, h.SetSchedule(t.Context(), s))
}

func (h *host) times(t *testing.T) (times []string) {
	t.Helper()
	snapshots, err := h.Snapshots(t.Context(), "web")
	require.NoError(t, err)
	for _, s := range snapshots {
		times = append(times, s.Schedule+" "+s.Time.Format("15:04"))
	}
	return times
}

// metrics has the values of the metrics, by name and labels.
func metrics(t *testing.T, r *Runner) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(r))
	families, err := registry.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

// TestRun: snapshots are taken at full periods, also of a schedule that is set while the Runner runs, until it ends.
func TestRun(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		r, stop := h.run(t)
		sleep(10*time.Minute + 30*time.Second)
		h.set(t, live.Schedule{Every: 30 * time.Minute, Keep: 3})
		h.set(t, live.Schedule{Every: time.Hour, Keep: 1})
		sleep(19 * time.Minute)
		assert.Empty(t, h.times(t))
		sleep(time.Minute)
		assert.Equal(t, []string{"30m 00:30"}, h.times(t))
		sleep(2 * time.Hour)
		assert.Equal(t, []string{"30m 01:30", "30m 02:00", "1h 02:00", "30m 02:30"}, sorted(h.times(t)))
		assert.Equal(t, map[string]float64{
			"cowshed_scheduled_snapshots_total ok store": 7, "cowshed_scheduled_snapshots_total incomplete store": 0, "cowshed_scheduled_snapshots_total failed store": 0,
			"cowshed_snapshot_schedules ok store": 2, "cowshed_snapshot_hooks_left store": 0,
		}, metrics(t, r))
		require.NoError(t, h.EndSchedules(t.Context(), "web", 30*time.Minute))
		sleep(time.Hour)
		assert.Equal(t, []string{"30m 01:30", "30m 02:00", "30m 02:30", "1h 03:00"}, sorted(h.times(t)), "the snapshots of a schedule that has ended stay")
		stop()
		sleep(5 * time.Hour)
		assert.Len(t, h.times(t), 4)
	})
}

// sorted is a list in which snapshots of one moment have an order.
func sorted(times []string) []string {
	for i := 1; i < len(times); i++ {
		if a, b := times[i-1], times[i]; a[len(a)-5:] == b[len(b)-5:] && a[:2] == "1h" {
			times[i-1], times[i] = b, a
		}
	}
	return times
}

// TestMissed: a Runner that has not run for long takes one snapshot at its start, and then goes on as before. It does not repeat
// a snapshot after a restart.
func TestMissed(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.set(t, live.Schedule{Every: time.Hour, Keep: 24})
		sleep(7*time.Hour + 20*time.Minute)
		for range 3 {
			_, stop := h.run(t)
			sleep(time.Minute)
			assert.Equal(t, []string{"1h 07:20"}, h.times(t))
			stop()
		}
		_, stop := h.run(t)
		sleep(time.Hour)
		assert.Equal(t, []string{"1h 07:20", "1h 08:00"}, h.times(t))
		stop()
	})
}

// TestFailing: a failure is logged and counted, and tried again at the next time, not before, also after a restart.
func TestFailing(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		broken := filepath.Join(t.TempDir(), "broken")
		require.NoError(t, os.WriteFile(broken, nil, 0o600))
		h.set(t, live.Schedule{Every: time.Hour, Keep: 24, Hooks: live.Hooks{Pre: "test ! -e " + broken, Timeout: time.Minute}})
		_, stop := h.run(t)
		sleep(time.Hour)
		assert.Contains(t, h.log.String(), "a snapshot by schedule has failed")
		stop()
		r, stop := h.run(t)
		require.NoError(t, os.Remove(broken))
		sleep(30 * time.Minute)
		assert.Empty(t, h.times(t))
		assert.InDelta(t, 1, metrics(t, r)["cowshed_snapshot_schedules failed store"], 0)
		sleep(30 * time.Minute)
		assert.Equal(t, []string{"1h 02:00"}, h.times(t))
		assert.InDelta(t, 0, metrics(t, r)["cowshed_snapshot_schedules failed store"], 0)

		h.broken.Store(true)
		sleep(90 * time.Minute)
		schedules, err := h.Schedules()
		require.NoError(t, err)
		assert.Contains(t, schedules[0].Failed.Error, "cannot be opened")
		assert.InDelta(t, 1, metrics(t, r)["cowshed_snapshot_schedules failed store"], 0)
		assert.InDelta(t, 1, metrics(t, r)["cowshed_scheduled_snapshots_total failed store"], 0)
		h.broken.Store(false)
		sleep(time.Hour)
		assert.Equal(t, []string{"1h 02:00", "1h 04:00"}, h.times(t))
		stop()
	})
}

// TestIncomplete: a snapshot whose post command fails has been taken, also after a restart.
func TestIncomplete(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.set(t, live.Schedule{Every: time.Hour, Keep: 24, Hooks: live.Hooks{Post: "exit 1", Timeout: time.Minute}})
		r, stop := h.run(t)
		sleep(time.Hour)
		assert.Equal(t, []string{"1h 01:00"}, h.times(t))
		assert.Contains(t, h.log.String(), "took a snapshot by schedule, and a step after it has failed")
		assert.InDelta(t, 1, metrics(t, r)["cowshed_scheduled_snapshots_total incomplete store"], 0)
		assert.InDelta(t, 0, metrics(t, r)["cowshed_scheduled_snapshots_total failed store"], 0)
		stop()
		r, stop = h.run(t)
		sleep(time.Minute)
		assert.InDelta(t, 1, metrics(t, r)["cowshed_snapshot_schedules incomplete store"], 0)
		stop()
	})
}

// TestLayerGone: the schedule of a layer that is gone goes too, and a record that cannot be read is told once.
func TestLayerGone(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		h.set(t, live.Schedule{Every: time.Hour, Keep: 24})
		require.NoError(t, h.backend.Remove(t.Context(), "web"))
		r, stop := h.run(t)
		sleep(time.Hour)
		schedules, err := h.Schedules()
		require.NoError(t, err)
		assert.Empty(t, schedules)
		require.NoError(t, os.WriteFile(filepath.Join(h.home.Dir, "schedules/x.json"), nil, 0o600))
		sleep(time.Hour)
		assert.Equal(t, 1, strings.Count(h.log.String(), "cannot be read"))
		assert.InDelta(t, 1, metrics(t, r)["cowshed_snapshot_schedules failed store"], 0)
		stop()
	})
}

// TestClockPutBack: a clock that is put back by years does not end the snapshots.
func TestClockPutBack(t *testing.T) {
	h := newHost(t)
	h.set(t, live.Schedule{Every: time.Hour, Keep: 24}) // in the present, which is long after the time in the bubble
	synctest.Test(t, func(t *testing.T) {
		r, stop := h.run(t)
		sleep(time.Hour)
		assert.Equal(t, []string{"1h 01:00"}, h.times(t))
		stop()
		for key := range r.known {
			r.known[key] = next{due: time.Now().Add(1000 * time.Hour)}
		}
		r.look(t.Context())
		for _, n := range r.known {
			assert.Equal(t, time.Hour, time.Until(n.due))
		}
	})
}

// TestLeftHooks: the hook that another process has left is run at the start, or within a minute.
func TestLeftHooks(t *testing.T) {
	h := newHost(t)
	said := filepath.Join(t.TempDir(), "said")
	dir := filepath.Join(h.home.Dir, "hooks")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	leave := func(post string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "hook-aaaaaaaaaaaa.json"),
			fmt.Appendf(nil, `{"version":1,"layer":"web","post":%q,"timeout":60000000000}`, post), 0o600))
	}
	leave("echo start $COWSHED_PID >>" + said)
	h.home.Process = func(context.Context, string) (uint32, error) { return 42, nil }
	synctest.Test(t, func(t *testing.T) {
		r, stop := h.run(t)
		sleep(time.Second)
		leave("echo later $COWSHED_PID >>" + said)
		sleep(time.Minute)
		assert.InDelta(t, 0, metrics(t, r)["cowshed_snapshot_hooks_left store"], 0)
		leave("echo tried >>" + said + "; exit 1")
		sleep(time.Hour)
		assert.InDelta(t, 1, metrics(t, r)["cowshed_snapshot_hooks_left store"], 0)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "hook-bad.json"), nil, 0o600))
		sleep(time.Minute)
		assert.InDelta(t, 2, metrics(t, r)["cowshed_snapshot_hooks_left store"], 0)
		stop()
	})
	assert.Equal(t, 1, strings.Count(h.log.String(), "exit status 1"))
	text, err := os.ReadFile(said)
	require.NoError(t, err)
	assert.Equal(t, "start 42\nlater 42\n"+strings.Repeat("tried\n", 6), string(text), "after 1, 3, 7, 15 and 31 minutes")
}

// TestExpired: forks are removed when they have expired. A home without such forks is not opened.
func TestExpired(t *testing.T) {
	h := newHost(t)
	synctest.Test(t, func(t *testing.T) {
		var opened atomic.Int64
		use := h.home.Use
		h.home.Use = func(ctx context.Context, do func(context.Context, *live.Layers) error) error {
			opened.Add(1)
			return use(ctx, do)
		}
		fork := func(name string, after time.Duration) {
			_, err := h.Fork(t.Context(), "web", []string{name}, live.ForkOptions{Fork: live.Fork{Expires: time.Now().Add(after)}})
			require.NoError(t, err)
		}
		isThere := func(name string) bool {
			_, err := h.backend.Stat(t.Context(), name)
			return err == nil
		}
		fork("soon", 5*time.Minute)
		fork("later", 20*time.Minute)
		_, stop := h.run(t)
		defer stop()
		sleep(4 * time.Minute)
		assert.True(t, isThere("soon"))
		assert.Zero(t, opened.Load())
		sleep(3 * time.Minute)
		assert.False(t, isThere("soon"))
		assert.True(t, isThere("later"))
		assert.Equal(t, int64(1), opened.Load())
		h.broken.Store(true)
		sleep(60 * time.Minute)
		assert.True(t, isThere("later"))
		assert.Less(t, opened.Load(), int64(12), "less and less often")
		assert.Equal(t, 1, strings.Count(h.log.String(), "expired forks stay"))
		h.broken.Store(false)
		sleep(maxSweepPause + lookPause)
		assert.False(t, isThere("later"))
	})
}
