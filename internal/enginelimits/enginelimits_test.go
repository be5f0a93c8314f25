package enginelimits

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// oneSnapshot has one snapshot, with the key moby/1/web, whose limit cannot always be set.
type oneSnapshot struct {
	mu     sync.Mutex
	limit  uint64
	labels map[string]string
	fault  error
	made   time.Time
}

func (s *oneSnapshot) Key(_ context.Context, namespace, own string) (string, error) {
	if namespace != "moby" || own != "web" {
		return "", errdefs.ErrNotFound
	}
	return "moby/1/web", nil
}

func (s *oneSnapshot) Stat(context.Context, string) (snapshots.Info, error) {
	return snapshots.Info{Labels: s.labels, Created: s.made}, nil
}

func (s *oneSnapshot) SetLimit(_ context.Context, _ string, bytes uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = bytes
	return s.fault
}

func testGroup(t *testing.T, s Snapshotter, sources ...Source) (*Group, *Metrics, string) {
	t.Helper()
	state, m := t.TempDir(), NewMetrics()
	return NewGroup(sources, s, m, state, slog.New(slog.DiscardHandler)), m, state
}

// series is the value of the series of a metric whose labels include this value. Of a histogram it is the number, and has a sum.
func series(t *testing.T, m *Metrics, name, label string) (value, sum float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, series := range family.GetMetric() {
			for _, pair := range series.GetLabel() {
				if family.GetName() == name && pair.GetValue() == label {
					histogram := series.GetHistogram()
					return series.GetCounter().GetValue() + series.GetGauge().GetValue() + float64(histogram.GetSampleCount()), histogram.GetSampleSum()
				}
			}
		}
	}
	return 0, 0
}

// counts reports whether that value is 1.
func counts(t *testing.T, m *Metrics, name, label string) bool {
	t.Helper()
	value, _ := series(t, m, name, label)
	return value == 1
}

// TestLimit: each outcome is counted, and an error of a container that exists is reported until the container is limited
// or gone.
func TestLimit(t *testing.T) {
	full := errors.New("full")
	for name, c := range map[string]struct {
		id, size string
		s        *oneSnapshot
		outcome  string
		limit    uint64
		err      error
	}{
		"set":       {"web", "2G", &oneSnapshot{}, outcomeSet, 2 << 30, nil},
		"kept":      {"web", "2G", &oneSnapshot{labels: map[string]string{snapshots.LabelSnapshotMaxSize: "1"}}, outcomeKept, 0, nil},
		"weaker":    {"web", "2G", &oneSnapshot{labels: map[string]string{snapshots.LabelSnapshotMaxSize: "1024"}}, outcomeSet, 2 << 30, nil},
		"both":      {"web", "1k", &oneSnapshot{labels: map[string]string{snapshots.LabelSnapshotMaxSize: "1024"}}, outcomeKept, 0, nil},
		"elsewhere": {"other", "much", &oneSnapshot{}, outcomeElsewhere, 0, nil},
		"no size":   {"web", "much", &oneSnapshot{}, outcomeInvalid, 0, errdefs.ErrInvalidArgument},
		"empty":     {"web", "", &oneSnapshot{}, outcomeInvalid, 0, errdefs.ErrInvalidArgument},
		"too large": {"web", "5G", &oneSnapshot{}, outcomeInvalid, 0, errdefs.ErrInvalidArgument},
		"failed":    {"web", "2G", &oneSnapshot{fault: full}, outcomeFailed, 2 << 30, full},
	} {
		t.Run(name, func(t *testing.T) {
			g, m, state := testGroup(t, c.s)
			limited := Container{Engine: "e", Namespace: "moby", ID: c.id, Name: "n", Setting: "size", Size: c.size, Weaker: "1K", Max: 4 << 30}
			require.ErrorIs(t, g.limiter.Limit(t.Context(), limited), c.err)
			assert.Equal(t, c.limit, c.s.limit)
			assert.True(t, counts(t, m, "cowshed_engine_limits_total", c.outcome))
			_, err := ReadReport(state)
			require.ErrorIs(t, err, fs.ErrNotExist)

			g.limiter.Catch(t.Context(), limited)
			if c.err == nil {
				return
			}
			for _, end := range []func(){
				func() { g.limiter.Forget("moby", "web") },
				func() { g.Settled("moby/1/web") },
				func() { g.limiter.report.begin("e"); g.limiter.report.write() },
			} {
				g.limiter.Catch(t.Context(), limited)
				r, err := ReadReport(state)
				require.NoError(t, err)
				require.Len(t, r.Refused, 1)
				assert.Equal(t, "n", r.Refused[0].Name)
				end()
				r, err = ReadReport(state)
				require.NoError(t, err)
				assert.Empty(t, r.Refused)
			}
		})
	}
}

// TestCheckStart: a container with a bad size is not started for the first time, until it has a limit or until it is gone. Others are,
// also if their limits cannot be set.
func TestCheckStart(t *testing.T) {
	const key = "moby/1/web"
	s := &oneSnapshot{}
	g, _, _ := testGroup(t, s)
	bad := Container{Engine: "e", Namespace: "moby", ID: "web", Name: "shop", Setting: "size", Size: "much", Unstarted: true}
	require.NoError(t, g.CheckStart(key))
	for _, end := range []func(){
		func() { g.limiter.Forget("moby", "web") },
		func() { g.Settled(key) },
		func() { g.limiter.report.begin("e") },
	} {
		g.limiter.Catch(t.Context(), bad)
		err := g.CheckStart(key)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, `container shop be started or mounted: size: invalid argument: size "much"`)
		require.ErrorContains(t, err, "cowshed limit containerd:moby/web SIZE")
		require.NoError(t, g.CheckStart("moby/1/other"))
		require.NoError(t, g.CheckStart("k8s.io/1/web"))
		end()
		require.NoError(t, g.CheckStart(key))
	}
	started, unknown := bad, bad
	started.Unstarted = false
	g.limiter.Catch(t.Context(), started)
	require.NoError(t, g.CheckStart(key), "it holds data that somebody may need")
	s.fault = errors.New("full")
	unknown.Size = "2G"
	g.limiter.Catch(t.Context(), unknown)
	require.NoError(t, g.CheckStart(key))
}

// TestDelay: a metric has the time of a container without its limit, also if only its snapshot tells when it was created.
func TestDelay(t *testing.T) {
	const minute = 60
	for name, created := range map[string]time.Time{"engine": time.Now().Add(-minute * time.Second), "snapshot": {}} {
		t.Run(name, func(t *testing.T) {
			s := &oneSnapshot{made: time.Now().Add(-minute * time.Second)}
			g, m, _ := testGroup(t, s)
			require.NoError(t, g.limiter.Limit(t.Context(), Container{Engine: "e", Namespace: "moby", ID: "web", Size: "2G", Created: created}))
			_, sum := series(t, m, "cowshed_engine_limit_delay_seconds", "e")
			assert.GreaterOrEqual(t, sum, float64(minute))
		})
	}
}

// TestExpect: a container that an engine announces gets its limit with its snapshot, once, also after a failure. A bad
// size is refused, and of many containers without snapshots the oldest are forgotten.
func TestExpect(t *testing.T) {
	g, m, _ := testGroup(t, &oneSnapshot{})
	c := Container{Engine: "e", Namespace: "moby", ID: "web", Setting: "size", Size: "2G", Max: 4 << 30}
	prepared := func(key string, fault error) (label string, err error) {
		err = g.Prepare(t.Context(), key, func(limit ...snapshots.Opt) error {
			var info snapshots.Info
			for _, set := range limit {
				require.NoError(t, set(&info))
			}
			label = info.Labels[snapshots.LabelSnapshotMaxSize]
			return fault
		})
		return label, err
	}
	require.NoError(t, g.limiter.Expect(t.Context(), c))
	for _, key := range []string{"moby/1/web-init", "k8s.io/1/web", "web"} {
		label, err := prepared(key, nil)
		require.NoError(t, err)
		assert.Empty(t, label)
	}
	label, err := prepared("moby/1/web", nil)
	require.NoError(t, err)
	assert.Equal(t, "2147483648", label)
	assert.True(t, counts(t, m, "cowshed_engine_limits_total", outcomeSet))
	assert.True(t, counts(t, m, "cowshed_engine_limit_delay_seconds", "e"))
	label, err = prepared("moby/2/web", nil)
	require.NoError(t, err)
	assert.Empty(t, label)

	require.NoError(t, g.limiter.Expect(t.Context(), c))
	_, err = prepared("moby/3/web", errdefs.ErrAlreadyExists)
	require.Equal(t, errdefs.ErrAlreadyExists, err, "it is no error of the limit")
	assert.False(t, counts(t, m, "cowshed_engine_limits_total", outcomeFailed))
	label, err = prepared("moby/4/web", nil)
	require.NoError(t, err)
	assert.Equal(t, "2147483648", label, "the client prepares again")

	c.Size = "5G"
	require.ErrorIs(t, g.limiter.Expect(t.Context(), c), errdefs.ErrInvalidArgument)
	assert.True(t, counts(t, m, "cowshed_engine_limits_total", outcomeInvalid))

	c.Size = "2G"
	for i := range maxExpected + 1 {
		c.ID = fmt.Sprint(i)
		require.NoError(t, g.limiter.Expect(t.Context(), c))
	}
	for key, want := range map[string]string{"moby/1/0": "", "moby/1/1": "2147483648", "moby/1/1000": "2147483648"} {
		label, err := prepared(key, nil)
		require.NoError(t, err)
		assert.Equal(t, want, label, key)
	}
}

// TestReportIsBounded: only the first containers are named.
func TestReportIsBounded(t *testing.T) {
	g, _, state := testGroup(t, &oneSnapshot{})
	for i := range maxRefused + 2 {
		g.limiter.Unknown(t.Context(), Container{Engine: "e", Namespace: "moby", ID: string(rune('a' + i))}, errdefs.ErrUnavailable)
	}
	r, err := ReadReport(state)
	require.NoError(t, err)
	assert.Len(t, r.Refused, maxRefused)
	assert.Equal(t, 2, r.More)
	g.limiter.Unknown(t.Context(), Container{Engine: "e", Namespace: "moby", ID: string(rune('a' + maxRefused))}, errdefs.ErrUnavailable)
	g.limiter.report.begin("another")
	g.limiter.Forget("moby", "a")
	r, err = ReadReport(state)
	require.NoError(t, err)
	assert.Len(t, r.Refused, maxRefused)
	assert.Equal(t, 1, r.More, "a container counts once, and those of an engine until it names all again")
	g.limiter.report.all = append(make([]Refused, 1), slices.Repeat([]Refused{{Engine: "e", ID: "new"}}, maxKnown-1)...)
	g.limiter.Unknown(t.Context(), Container{Engine: "e", Namespace: "moby", ID: "last"}, errdefs.ErrUnavailable)
	r, err = ReadReport(state)
	require.NoError(t, err)
	assert.Equal(t, maxKnown-maxRefused, r.More)
	assert.Equal(t, "new", r.Refused[0].ID)
	g.limiter.report.begin("e")
	g.limiter.report.write()
	r, err = ReadReport(state)
	require.NoError(t, err)
	assert.Empty(t, r.Refused)
	assert.Zero(t, r.More)
	require.NoError(t, RemoveReport(state))
	require.NoError(t, RemoveReport(state))
}

// TestPartialSource: the containers of an engine that does not name all of them stay in the report when it connects again, until
// they have their limits.
func TestPartialSource(t *testing.T) {
	for _, all := range []bool{true, false} {
		s := &awaySource{partial: !all}
		g, _, state := testGroup(t, &oneSnapshot{}, s)
		c := Container{Engine: "e", Namespace: "moby", ID: "web", Size: "2G"}
		g.limiter.Unknown(t.Context(), c, errdefs.ErrUnavailable)
		g.connected(s)
		r, err := ReadReport(state)
		require.NoError(t, err)
		assert.Equal(t, all, len(r.Refused) == 0)
		g.limiter.Catch(t.Context(), c)
		r, err = ReadReport(state)
		require.NoError(t, err)
		assert.Empty(t, r.Refused)
	}
}

// awaySource is an engine that is away, except at the attempts that connect.
type awaySource struct {
	began    time.Time
	attempts []time.Duration
	connects map[int]bool
	partial  bool
}

func (s *awaySource) Engine() string { return "e" }

func (s *awaySource) NamesAll() bool { return !s.partial }

func (s *awaySource) Run(ctx context.Context, _ *Limiter, connected func()) error {
	s.attempts = append(s.attempts, time.Since(s.began))
	if s.connects[len(s.attempts)] {
		connected()
		<-ctx.Done()
		return ctx.Err()
	}
	return errdefs.ErrUnavailable
}

// TestWake: an engine that asks for snapshots is tried without a long pause, and not without any.
func TestWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &awaySource{began: time.Now()}
		g, _, _ := testGroup(t, &oneSnapshot{}, s)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { g.Run(ctx) })
		for range 50 {
			time.Sleep(10 * time.Millisecond)
			g.Wake()
		}
		synctest.Wait()
		assert.InDelta(t, 500*time.Millisecond/wakePause, len(s.attempts), 1)
		cancel()
		running.Wait()
	})
}

// TestReconnect: an engine that is away is asked for less and less often, and soon when it has shown that it runs.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &awaySource{began: time.Now(), connects: map[int]bool{10: true}}
		g, m, state := testGroup(t, &oneSnapshot{}, s)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { g.Run(ctx) })
		time.Sleep(200 * time.Second)
		synctest.Wait()
		seconds := func(list ...int) (d []time.Duration) {
			for _, s := range list {
				d = append(d, time.Duration(s)*time.Second)
			}
			return d
		}
		assert.Equal(t, seconds(0, 1, 3, 7, 15, 31, 63, 123, 183), s.attempts)
		assert.False(t, counts(t, m, "cowshed_engine_connected", "e"))
		r, err := ReadReport(state)
		require.NoError(t, err)
		assert.False(t, r.Engines[0].Connected)
		assert.NotEmpty(t, r.Engines[0].Error)

		g.Wake()
		g.Wake()
		synctest.Wait()
		assert.Len(t, s.attempts, 10)
		assert.True(t, counts(t, m, "cowshed_engine_connected", "e"))
		r, err = ReadReport(state)
		require.NoError(t, err)
		assert.True(t, r.Engines[0].Connected)
		cancel()
		running.Wait()
	})
}
