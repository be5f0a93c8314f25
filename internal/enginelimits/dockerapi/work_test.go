package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/enginelimits"
)

// fakeEngine answers without a network, so that its clients can live in a bubble of synctest.
type fakeEngine struct {
	events chan string // "create ID" or "destroy ID"; closed: the stream ends at once

	mu       sync.Mutex
	list     func() (ids []string, err error)
	describe map[string]func(ctx context.Context) (more string, err error)
	asked    map[string][]time.Duration // when, by path
	began    time.Time
}

var errRefused, errGone = errors.New("refused"), errors.New("no such container")

func newFakeEngine() *fakeEngine {
	return &fakeEngine{
		events: make(chan string), list: func() ([]string, error) { return nil, nil },
		describe: make(map[string]func(context.Context) (string, error)), asked: make(map[string][]time.Duration), began: time.Now(),
	}
}

// RoundTrip implements http.RoundTripper.
func (e *fakeEngine) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := e.answer(r.Context(), r.URL.Path)
	status := http.StatusOK
	switch {
	case errors.Is(err, errRefused):
		status = http.StatusForbidden
	case errors.Is(err, errGone):
		status = http.StatusNotFound
	case err != nil:
		return nil, err
	}
	return &http.Response{StatusCode: status, Body: body}, nil
}

func (e *fakeEngine) answer(ctx context.Context, path string) (io.ReadCloser, error) {
	e.mu.Lock()
	e.asked[path] = append(e.asked[path], time.Since(e.began))
	events, list, describe := e.events, e.list, e.describe[strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/json")]
	e.mu.Unlock()
	switch path {
	case "/events":
		return stream(ctx, events), nil
	case "/containers/json":
		ids, err := list()
		var text []string
		for _, id := range ids {
			text = append(text, fmt.Sprintf(`{"Id": %q}`, id))
		}
		return io.NopCloser(strings.NewReader("[" + strings.Join(text, ",") + "]")), err
	}
	more, err := describe(ctx)
	return io.NopCloser(strings.NewReader(`{"Name": "/named"` + more + `}`)), err
}

func stream(ctx context.Context, events <-chan string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		for {
			select {
			case said, ok := <-events:
				if !ok {
					_ = w.Close()
					return
				}
				action, id, _ := strings.Cut(said, " ")
				fmt.Fprintf(w, `{"Action": %q, "Actor": {"ID": %q}}`, action, id)
			case <-ctx.Done():
				_ = w.CloseWithError(ctx.Err())
				return
			}
		}
	}()
	return r
}

func (e *fakeEngine) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *fakeEngine) times(path string) []time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.asked[path])
}

const sized = `, "HostConfig": {"StorageOpt": {"size": "1M"}}`

// says is an engine's answer at once.
func says(more string, err error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return more, err }
}

// runEngine runs a daemon's part for an engine until the test ends.
func runEngine(t *testing.T, e *fakeEngine) (set *limits, report func() enginelimits.Report) {
	t.Helper()
	set = &limits{}
	_, report = runGroup(t, e, set)
	return set, report
}

func runGroup(t *testing.T, e *fakeEngine, set *limits) (group *enginelimits.Group, report func() enginelimits.Report) {
	t.Helper()
	state := t.TempDir()
	s := &Source{Client: &Client{&http.Client{Transport: e}}}
	group = enginelimits.NewGroup([]enginelimits.Source{s}, set, enginelimits.NewMetrics(), state, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { group.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return group, func() enginelimits.Report {
		r, err := enginelimits.ReadReport(state)
		require.NoError(t, err)
		return r
	}
}

// mostInTenMinutes is how often an engine that never stays is asked at most: after 1, 2, 4, 8, 16 and 32 seconds, and then each minute.
const mostInTenMinutes = 1 + 6 + 9

// TestListRefused: an engine, or a proxy before it, that tells events and no list is no connection. It is asked less and less often,
// and the findings of cowshed doctor stay.
func TestListRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.list = func() ([]string, error) { return []string{"bad"}, nil }
		e.describe["bad"] = says(`, "HostConfig": {"StorageOpt": {"size": "much"}}`, nil)
		_, report := runEngine(t, e)
		synctest.Wait()
		require.True(t, report().Engines[0].Connected)
		require.Len(t, report().Refused, 1)

		e.set(func() { e.list = func() ([]string, error) { return nil, errRefused } })
		before := len(e.times("/containers/json"))
		close(e.events)
		e.set(func() { e.events = make(chan string) })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		assert.LessOrEqual(t, len(e.times("/containers/json"))-before, mostInTenMinutes)
		assert.False(t, report().Engines[0].Connected)
		assert.Contains(t, report().Engines[0].Error, "docker says")
		assert.Len(t, report().Refused, 1)
	})
}

// TestEventsEndAtOnce: an engine whose events end soon, again and again, is asked less and less often too.
func TestEventsEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		close(e.events)
		runEngine(t, e)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		assert.LessOrEqual(t, len(e.times("/events")), mostInTenMinutes)
	})
}

// TestStuckContainers: containers that the engine does not describe while it starts them keep no others waiting. They get their
// limits when the start ends, and the report has them until then.
func TestStuckContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		started := make(chan struct{})
		hangs := func(more string) func(context.Context) (string, error) {
			return func(ctx context.Context) (string, error) {
				select {
				case <-started:
					return more, nil
				case <-ctx.Done():
					return "", ctx.Err()
				}
			}
		}
		const stuck = 2 * slowAtOnce
		for n := range stuck {
			e.describe[fmt.Sprint("stuck-", n)] = hangs(sized)
		}
		e.describe["unlimited"] = hangs("")
		e.describe["removed"] = hangs("")
		e.describe["new"] = says(sized, nil)
		set, report := runEngine(t, e)
		limit := func(id string) any {
			bytes, _ := set.Load(id)
			return bytes
		}
		e.events <- "create unlimited"
		e.events <- "create removed"
		for n := range atOnce {
			e.events <- fmt.Sprint("create stuck-", n)
		}
		e.events <- "create new"
		time.Sleep(2 * quickTime)
		synctest.Wait()
		assert.Equal(t, uint64(1<<20), limit("new"))
		assert.Len(t, report().Refused, atOnce+2)
		for n := range stuck - atOnce {
			e.events <- fmt.Sprint("create stuck-", n+atOnce)
		}
		time.Sleep(10 * time.Minute)
		e.events <- "destroy removed"
		synctest.Wait()
		assert.Len(t, report().Refused, stuck+1)
		tries := len(e.times("/containers/stuck-0/json"))
		assert.LessOrEqual(t, tries, 1+mostInTenMinutes)
		assert.Greater(t, tries, 1)
		assert.Nil(t, limit("stuck-0"))

		e.set(func() { e.describe["removed"] = says("", errGone) })
		close(started)
		time.Sleep(longestPause)
		synctest.Wait()
		for n := range stuck {
			assert.Equal(t, uint64(1<<20), limit(fmt.Sprint("stuck-", n)))
		}
		assert.Empty(t, report().Refused)
	})
}

// TestDescriptionFails: a container that the engine cannot describe at first gets its limit soon afterwards.
func TestDescriptionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.list = func() ([]string, error) { return []string{"web"}, nil }
		e.describe["web"] = says("", errRefused)
		set, report := runEngine(t, e)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		require.Len(t, report().Refused, 1)
		assert.Equal(t, "web", report().Refused[0].Name)
		assert.LessOrEqual(t, len(e.times("/containers/web/json")), 2+6+2)

		e.set(func() { e.describe["web"] = says(sized, nil) })
		time.Sleep(longestPause)
		synctest.Wait()
		bytes, _ := set.Load("web")
		assert.Equal(t, uint64(1<<20), bytes)
		assert.Empty(t, report().Refused)
		asked := len(e.times("/containers/web/json"))
		time.Sleep(time.Hour)
		assert.Len(t, e.times("/containers/web/json"), asked)
	})
}

// TestStartedMeanwhile: the engine describes a container with a bad size as created, and begins to start it before the daemon has that
// answer. So the container is started, and may be restarted: it holds data. The engine describes it only when the start has ended.
// A container whose start has failed is refused still.
func TestStartedMeanwhile(t *testing.T) {
	for _, end := range []string{"running", "created"} {
		t.Run(end, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testStartedMeanwhile(t, end) })
		})
	}
}

func testStartedMeanwhile(t *testing.T, end string) {
	const bad, key = `, "State": {"Status": "%s"}, "HostConfig": {"StorageOpt": {"size": "much"}}`, Namespace + "/1/web"
	e := newFakeEngine()
	started, descriptions := make(chan struct{}), 0
	e.describe["web"] = func(ctx context.Context) (string, error) {
		descriptions++
		if descriptions == 1 {
			return fmt.Sprintf(bad, "created"), nil
		}
		select {
		case <-started:
			return fmt.Sprintf(bad, end), nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	group, report := runGroup(t, e, &limits{})
	e.events <- "create web"
	synctest.Wait()
	require.Error(t, group.CheckStart(key), "the start may not have begun")
	time.Sleep(quickTime + firstPause) // the start takes long
	require.Error(t, group.CheckStart(key), "nor later")
	require.Len(t, report().Refused, 1)
	assert.Contains(t, report().Refused[0].Error, "much")
	close(started)
	time.Sleep(longestPause)
	synctest.Wait()
	if end == "running" {
		require.NoError(t, group.CheckStart(key), "it is restarted")
	} else {
		require.Error(t, group.CheckStart(key))
	}
	require.Len(t, report().Refused, 1, "it has no limit")
}
