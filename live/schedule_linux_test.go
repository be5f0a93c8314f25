package live_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

func hourly(keep int) live.Schedule { return live.Schedule{Layer: "web", Every: time.Hour, Keep: keep} }

func TestScheduleNames(t *testing.T) {
	for every, want := range map[time.Duration]string{
		time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m", 24 * time.Hour: "24h", 168 * time.Hour: "168h",
	} {
		assert.Equal(t, want, live.Schedule{Every: every}.Name())
	}
	at := time.Date(2026, 12, 2, 12, 34, 56, 0, time.UTC) // a Wednesday
	for every, want := range map[time.Duration]time.Time{
		time.Hour: time.Date(2026, 12, 2, 13, 0, 0, 0, time.UTC), 168 * time.Hour: time.Date(2026, 12, 7, 0, 0, 0, 0, time.UTC),
	} {
		next := live.Schedule{Every: every}.Next(at)
		assert.Equal(t, want, next)
		assert.Equal(t, want.Add(every), live.Schedule{Every: every}.Next(next))
	}
}

func TestSetSchedule(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	schedules := func() (all []string) {
		t.Helper()
		list, err := h.Schedules()
		require.NoError(t, err)
		for _, s := range list {
			all = append(all, fmt.Sprint(s.Layer, " ", s.Name(), " ", s.Keep))
		}
		return all
	}
	assert.Empty(t, schedules())
	daily := live.Schedule{Layer: "web", Every: 24 * time.Hour, Keep: 7}
	for _, s := range []live.Schedule{daily, hourly(24), hourly(48)} {
		require.NoError(t, h.SetSchedule(ctx, s))
	}
	assert.Equal(t, []string{"web 1h 48", "web 24h 7"}, schedules())
	for _, s := range []live.Schedule{
		hourly(0), hourly(100_000), {Layer: "web", Every: time.Second, Keep: 1}, {Layer: "web", Every: 90 * time.Second, Keep: 1},
		{Layer: "web", Every: 10_000 * time.Hour, Keep: 1}, {Layer: "web", Every: time.Hour, Keep: 1, Hooks: live.Hooks{Pre: "true"}},
	} {
		require.ErrorIs(t, h.SetSchedule(ctx, s), errdefs.ErrInvalidArgument)
	}
	require.ErrorIs(t, h.SetSchedule(ctx, live.Schedule{Layer: "none", Every: time.Hour, Keep: 1}), errdefs.ErrNotFound)

	require.ErrorIs(t, h.EndSchedules(ctx, "web", time.Minute), errdefs.ErrNotFound)
	require.ErrorIs(t, h.EndSchedules(ctx, "other", 0), errdefs.ErrNotFound)
	require.NoError(t, h.EndSchedules(ctx, "web", time.Hour))
	assert.Equal(t, []string{"web 24h 7"}, schedules())
	require.NoError(t, h.SetSchedule(ctx, hourly(1)))
	require.NoError(t, h.EndSchedules(ctx, "web", 0))
	assert.Empty(t, schedules())

	// A schedule goes with its layer, and is not that of another of the same name.
	h.create("other")
	require.NoError(t, h.SetSchedule(ctx, hourly(1)))
	require.NoError(t, h.backend.Remove(ctx, "web"))
	problems, err := h.Check(ctx)
	require.NoError(t, err)
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].What, "which is gone")
	require.NoError(t, h.NewLayer(ctx, "other2"))
	assert.Len(t, schedules(), 1)
	require.NoError(t, h.NewLayer(ctx, "web"))
	assert.Empty(t, schedules())
	h.create("web")
	require.NoError(t, h.SetSchedule(ctx, hourly(1)))
	require.NoError(t, h.backend.Remove(ctx, "web"))
	h.assertClean(0, "other")
	assert.Empty(t, schedules())
	require.NoError(t, h.backend.Remove(ctx, "other"))
	require.NoError(t, h.Delete(ctx))
}

// TestScheduleWithoutName: a layer has no name for a moment, as in a rollback on ZFS, and keeps its schedule.
func TestScheduleWithoutName(t *testing.T) {
	h, ctx := nameless(t), t.Context()
	other := h.over(noRename{h.backend})
	file := filepath.Join(h.records, "schedules")
	require.NoError(t, os.Mkdir(file, 0o700))
	h2 := newHome(t)
	h2.create("web")
	require.NoError(t, h2.SetSchedule(ctx, hourly(3)))
	entries, err := os.ReadDir(filepath.Join(h2.records, "schedules"))
	require.NoError(t, err)
	record, err := os.ReadFile(filepath.Join(h2.records, "schedules", entries[0].Name()))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(file, entries[0].Name()), record, 0o600))
	require.NoError(t, other.Sweep(ctx))
	schedules, err := h.Schedules()
	require.NoError(t, err)
	assert.Len(t, schedules, 1)
}

// TestTakeScheduled: only the oldest snapshots of the schedule go, and none from which a layer was made or that is in use.
func TestTakeScheduled(t *testing.T) {
	h := newHome(t)
	h.create("web")
	synctest.Test(t, func(t *testing.T) {
		h, ctx := h.in(t), t.Context()
		s := hourly(2)
		s.Message = "by schedule"
		take := func() live.Moment {
			t.Helper()
			time.Sleep(time.Hour)
			m, err := h.TakeScheduled(ctx, s)
			require.NoError(t, err)
			return m
		}
		first := take()
		assert.Equal(t, "every-1h-20000101T010000Z", first.Name)
		assert.Equal(t, "by schedule", first.Message)
		_, err := h.Snapshot(ctx, "web", "by-hand", live.SnapshotOptions{})
		require.NoError(t, err)
		second := take()
		_, err = h.Fork(ctx, second.Volume, []string{"fork"}, live.ForkOptions{})
		require.NoError(t, err)
		third := take()
		assert.Equal(t, []string{"by-hand", second.Name, third.Name}, h.names("web"))
		fourth := take()
		assert.Equal(t, []string{"by-hand", second.Name, third.Name, fourth.Name}, h.names("web"), "the fork needs the second")
		require.NoError(t, h.backend.Remove(ctx, "fork"))
		require.NoError(t, h.Sweep(ctx))
		_, err = h.backend.Mount(ctx, third.Volume, "")
		require.NoError(t, err)
		fifth := take()
		assert.Equal(t, []string{"by-hand", third.Name, fourth.Name, fifth.Name}, h.names("web"), "somebody looks at the third")
		require.NoError(t, h.backend.Unmount(ctx, third.Volume))

		// A layer that was rolled back to a snapshot needs it.
		_, err = h.Rollback(ctx, "web", fourth.Name, live.RollbackOptions{})
		require.NoError(t, err)
		sixth := take()
		seventh := take()
		assert.Equal(t, []string{"by-hand", fourth.Name, "before-rollback-1", sixth.Name, seventh.Name}, h.names("web"))
	})
	require.NoError(t, h.backend.Remove(t.Context(), "web"))
	h.assertClean(0)
}

// TestScheduledBesideOthers: while others are at work no snapshot is removed, and the next time removes all that are too many. It is an
// error if these become many, and also for a process that has just opened the home. Those that are needed do not count.
func TestScheduledBesideOthers(t *testing.T) {
	h := newHome(t)
	h.create("web")
	require.NoError(t, h.SetSchedule(t.Context(), hourly(1)))
	lock, err := os.Open(filepath.Join(h.records, ".lock"))
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, flock.Shared(t.Context(), lock))
	synctest.Test(t, func(t *testing.T) {
		h := h.in(t)
		for _, want := range []int{1, 2, 3, 4, 5, 2} {
			if want == 5 {
				m, err := h.Get("web", h.names("web")[0])
				require.NoError(t, err)
				_, err = h.Fork(t.Context(), m.Volume, []string{"fork"}, live.ForkOptions{})
				require.NoError(t, err)
			}
			if want == 2 && len(h.names("web")) > 2 {
				require.NoError(t, flock.Unlock(lock))
			}
			time.Sleep(time.Hour)
			opened := live.New(h.backend, h.records, slog.New(slog.DiscardHandler))
			m, err := opened.TakeScheduled(t.Context(), h.schedule())
			if want >= 4 {
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
				require.ErrorContains(t, err, "3 snapshots too many stay")
				assert.Equal(t, m.Name, h.schedule().Failed.Snapshot)
			} else {
				require.NoError(t, err)
				assert.Nil(t, h.schedule().Failed)
			}
			assert.Len(t, h.names("web"), want)
		}
	})
}

// in is the home in another test, such as a bubble.
func (h home) in(t *testing.T) home {
	h.t = t
	return h
}

// TestScheduledOfWrongClock: snapshots of a time to come are the first to go.
func TestScheduledOfWrongClock(t *testing.T) {
	h := newHome(t)
	h.create("web")
	ahead, err := h.TakeScheduled(t.Context(), hourly(2)) // 26 years ahead of the time in the bubble
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		h := h.in(t)
		s := hourly(2)
		s.Since = time.Now()
		due, err := h.FirstDue(s, time.Now())
		require.NoError(t, err)
		assert.Equal(t, time.Hour, time.Until(due))
		for range 2 {
			time.Sleep(time.Hour)
			_, err := h.TakeScheduled(t.Context(), hourly(2))
			require.NoError(t, err)
		}
		assert.NotContains(t, h.names("web"), ahead.Name)
		assert.Len(t, h.names("web"), 2)
	})
}

// TestScheduleModel compares the snapshots of a layer with a model, while schedules take some, people take and remove some, and fork
// some.
func TestScheduleModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	h := newHome(t)
	h.create("web")
	synctest.Test(t, func(t *testing.T) {
		h, ctx := h.in(t), t.Context()
		type snapshot struct{ name, schedule, fork string }
		var model []snapshot
		for step := range 150 {
			time.Sleep(time.Minute)
			switch pick := random.IntN(10); {
			case pick < 5:
				s := live.Schedule{Layer: "web", Every: []time.Duration{time.Hour, 24 * time.Hour}[random.IntN(2)], Keep: 1 + random.IntN(4)}
				m, err := h.TakeScheduled(ctx, s)
				require.NoError(t, err)
				model = append(model, snapshot{name: m.Name, schedule: s.Name()})
				kept := 0
				for i := len(model) - 1; i >= 0; i-- {
					if model[i].schedule != s.Name() {
						continue
					}
					if kept++; kept > s.Keep && model[i].fork == "" {
						model = slices.Delete(model, i, i+1)
					}
				}
			case pick < 7:
				m, err := h.Snapshot(ctx, "web", "", live.SnapshotOptions{})
				require.NoError(t, err)
				model = append(model, snapshot{name: m.Name})
			case len(model) == 0:
			case pick < 9:
				s := &model[random.IntN(len(model))]
				if s.fork != "" {
					require.NoError(t, h.backend.Remove(ctx, s.fork))
					require.NoError(t, h.Sweep(ctx))
					s.fork = ""
					break
				}
				m, err := h.Get("web", s.name)
				require.NoError(t, err)
				s.fork = fmt.Sprint("fork-", step)
				_, err = h.Fork(ctx, m.Volume, []string{s.fork}, live.ForkOptions{})
				require.NoError(t, err)
			default:
				i := random.IntN(len(model))
				if model[i].fork != "" {
					break
				}
				require.NoError(t, h.RemoveSnapshot(ctx, "web", model[i].name))
				model = slices.Delete(model, i, i+1)
			}
			var want []string
			for _, s := range model {
				want = append(want, s.name)
			}
			require.Equal(t, want, h.names("web"), "step %d", step)
		}
	})
}

// TestScheduleFailures: a failure is recorded until a snapshot succeeds, and doctor finds it. Without room for that, doctor finds
// that snapshots are missing.
func TestScheduleFailures(t *testing.T) {
	h := newHooksHome(t)
	broken := filepath.Join(t.TempDir(), "broken")
	synctest.Test(t, func(t *testing.T) {
		h, ctx := h.home.in(t), t.Context()
		s := hourly(2)
		s.Hooks = live.Hooks{Pre: "echo why; test ! -e " + broken, Timeout: time.Minute}
		require.NoError(t, h.SetSchedule(ctx, s))
		s = h.schedule()
		problems := func() (what []string) {
			t.Helper()
			found, err := h.Check(ctx)
			require.NoError(t, err)
			for _, p := range found {
				what = append(what, p.What)
			}
			return what
		}
		assert.Empty(t, problems())
		time.Sleep(time.Hour)
		require.NoError(t, os.WriteFile(broken, nil, 0o600))
		_, err := h.TakeScheduled(ctx, s)
		require.ErrorIs(t, err, errdefs.ErrAborted)
		require.NotNil(t, h.schedule().Failed)
		assert.Contains(t, h.schedule().Failed.Error, "why")
		require.Len(t, problems(), 1)
		assert.Contains(t, problems()[0], "has failed, on ")
		due, err := h.FirstDue(h.schedule(), time.Now())
		require.NoError(t, err)
		assert.Equal(t, time.Hour, time.Until(due), "it is tried at the next time")

		require.NoError(t, os.Remove(broken))
		_, err = h.TakeScheduled(ctx, s)
		require.NoError(t, err)
		assert.Nil(t, h.schedule().Failed)
		assert.Empty(t, problems())
		time.Sleep(2*time.Hour + 2*time.Minute)
		require.Len(t, problems(), 1)
		assert.Contains(t, problems()[0], "has taken no snapshot since")

		// Set anew meanwhile: the outcome is not that of the new schedule.
		require.NoError(t, h.SetSchedule(ctx, hourly(5)))
		require.NoError(t, os.WriteFile(broken, nil, 0o600))
		_, err = h.TakeScheduled(ctx, s)
		require.Error(t, err)
		assert.Equal(t, 5, h.schedule().Keep)
		assert.Nil(t, h.schedule().Failed)
		require.NoError(t, h.EndSchedules(ctx, "web", 0))
		_, err = h.TakeScheduled(ctx, s)
		require.Error(t, err)
		list, err := h.Schedules()
		require.NoError(t, err)
		assert.Empty(t, list, "it does not come back")
	})
}

// TestScheduleIncomplete: if a step after a snapshot fails, doctor names the snapshot, and says later that others are missing.
func TestScheduleIncomplete(t *testing.T) {
	h := newHooksHome(t)
	synctest.Test(t, func(t *testing.T) {
		h, ctx := h.home.in(t), t.Context()
		s := hourly(2)
		s.Hooks = live.Hooks{Post: "exit 1", Timeout: time.Minute}
		require.NoError(t, h.SetSchedule(ctx, s))
		m, err := h.TakeScheduled(ctx, h.schedule())
		require.ErrorIs(t, err, errdefs.ErrAborted)
		require.NotNil(t, h.schedule().Failed)
		assert.Equal(t, m.Name, h.schedule().Failed.Snapshot)
		problems := h.CheckSchedules(time.Now())
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0].What, "has taken the snapshot "+m.Name+", and then failed, on ")
		time.Sleep(2*time.Hour + 2*time.Minute)
		problems = h.CheckSchedules(time.Now())
		require.Len(t, problems, 2)
		assert.Contains(t, problems[1].What, "has taken no snapshot since")
	})
}

// TestScheduleSetByWrongClock: a schedule that was set at a time to come is a finding until it takes a snapshot. If it takes no more,
// it is overdue.
func TestScheduleSetByWrongClock(t *testing.T) {
	h := newHome(t)
	h.create("web")
	require.NoError(t, h.SetSchedule(t.Context(), hourly(2))) // 26 years ahead of the time in the bubble
	synctest.Test(t, func(t *testing.T) {
		h, ctx := h.in(t), t.Context()
		problems := h.CheckSchedules(time.Now())
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0].What, "a time to come")
		_, err := h.TakeScheduled(ctx, h.schedule())
		require.NoError(t, err)
		assert.Empty(t, h.CheckSchedules(time.Now()))
		time.Sleep(2*time.Hour + 2*time.Minute)
		problems = h.CheckSchedules(time.Now())
		require.Len(t, problems, 1)
		assert.Contains(t, problems[0].What, "has taken no snapshot since")
		overdue, err := h.Overdue(h.schedule(), time.Now())
		require.NoError(t, err)
		assert.True(t, overdue)
	})
}

// schedule is the only schedule.
func (h home) schedule() live.Schedule {
	h.t.Helper()
	list, err := h.Schedules()
	require.NoError(h.t, err)
	require.Len(h.t, list, 1)
	return list[0]
}

// TestScheduleOnFull: on a full filesystem the snapshot fails, and all others and the schedule stay.
func TestScheduleOnFull(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	require.NoError(t, h.SetSchedule(ctx, hourly(1)))
	first, err := h.TakeScheduled(ctx, h.schedule())
	require.NoError(t, err)
	mnt := filepath.Dir(h.records)
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)
	_, err = h.TakeScheduled(ctx, h.schedule())
	require.ErrorIs(t, err, syscall.ENOSPC)
	assert.Equal(t, []string{first.Name}, h.names("web"))
	require.ErrorIs(t, h.SetSchedule(ctx, hourly(2)), syscall.ENOSPC)
	assert.Equal(t, 1, h.schedule().Keep)
	require.NoError(t, h.EndSchedules(ctx, "web", 0))
}

// TestScheduledCrash: a crash at any step of a scheduled snapshot leaves the snapshots that were there, and perhaps the new one as
// that of the schedule. The next leaves as many as it is to keep.
func TestScheduledCrash(t *testing.T) {
	begin := func(h home) {
		h.create("web")
		for _, name := range []string{"every-1h-1", "every-1h-2"} {
			h.putScheduled(name)
		}
	}
	eachCrash(t, onBtrfs(), begin, func(h home) error {
		_, err := h.TakeScheduled(h.t.Context(), hourly(2))
		return err
	}, func(h home, done bool) {
		names := h.names("web")
		if done {
			assert.Len(h.t, names, 2)
		} else {
			assert.Subset(h.t, names, []string{"every-1h-2"})
		}
		require.NoError(h.t, h.Recover(h.t.Context()))
		synctest.Test(h.t, func(t *testing.T) {
			for range 2 {
				time.Sleep(time.Hour)
				_, err := h.TakeScheduled(t.Context(), hourly(2))
				require.NoError(t, err)
			}
		})
		assert.Len(h.t, h.names("web"), 2)
		h.assertClean(2, "web")
	})
}

// putScheduled makes a snapshot as if an hourly schedule had taken it.
func (h home) putScheduled(name string) {
	h.t.Helper()
	m, err := h.Snapshot(h.t.Context(), "web", name, live.SnapshotOptions{})
	require.NoError(h.t, err)
	file := filepath.Join(h.records, "moments", m.Volume+".json")
	record, err := os.ReadFile(file)
	require.NoError(h.t, err)
	changed := strings.Replace(string(record), `"layer"`, `"schedule": "1h", "layer"`, 1)
	require.NoError(h.t, os.WriteFile(file, []byte(changed), 0o600))
}

// TestUntrustedSchedules: a schedule with hooks that others may have written is not used.
func TestUntrustedSchedules(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.create("web")
	withHooks := hourly(1)
	withHooks.Hooks = live.Hooks{Pre: "true", Timeout: time.Second}
	require.NoError(t, h.SetSchedule(ctx, withHooks))
	dir := filepath.Join(h.records, "schedules")
	require.NoError(t, os.Chmod(dir, 0o770))
	_, err := h.Schedules()
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
	problems, err := h.Check(ctx)
	require.NoError(t, err)
	require.Len(t, problems, 1)
	assert.True(t, problems[0].Severe)
	require.ErrorIs(t, h.SetSchedule(ctx, withHooks), errdefs.ErrPermissionDenied)
	require.NoError(t, h.SetSchedule(ctx, hourly(1)), "without commands it is harmless")
	_, err = h.Schedules()
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o700))

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	file := filepath.Join(dir, entries[0].Name())
	for _, text := range []string{"", "{", `{"version":2}`, `{"version":1,"layer":"other","every":3600000000000,"keep":1}`, `{"version":1,"layer":"web","every":0,"keep":1}`} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		list, err := h.Schedules()
		require.Error(t, err, text)
		assert.Empty(t, list)
	}
	require.NoError(t, os.Remove(file))
	require.NoError(t, syscall.Mkfifo(file, 0o600))
	_, err = h.Schedules()
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.NoError(t, os.Remove(file))
	require.NoError(t, os.Symlink("/dev/zero", file))
	_, err = h.Schedules()
	require.ErrorIs(t, err, syscall.ELOOP)
	require.NoError(t, h.EndSchedules(ctx, "web", time.Hour), "what cannot be read can be ended")
	_, err = h.Schedules()
	require.NoError(t, err)
}
