package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// The environment of a run that looks for the cause of a failure.
const (
	durationEnv = "COWSHED_SOAK_DURATION" // as of time.ParseDuration
	chaosEnv    = "COWSHED_SOAK_CHAOS"    // kinds of chaos with commas between them, or "none"
	quotaEnv    = "COWSHED_SOAK_QUOTA"    // simple, classic or off
	seedEnv     = "COWSHED_SOAK_SEED"
)

const (
	clients    = 12
	commanders = 4

	roundsOfAll = 8 // in half of them the daemon is killed
	longRound   = 2 * time.Minute
)

// soak is a run on one filesystem.
type soak struct {
	t       *testing.T
	mnt     string // the filesystem
	dir     string // sockets, logs, mount points and programs
	program string // the command
	daemon  *daemon
	chaos   map[string]bool
	base    tree

	ctx  context.Context // of all requests; ends when the daemon has failed
	fail context.CancelCauseFunc

	foreignMade int

	mu     sync.Mutex
	now    space
	counts map[string]int // of events by kind
}

func (s *soak) commandRoot() string { return filepath.Join(s.mnt, "commands") }
func (s *soak) foreign() string     { return filepath.Join(s.mnt, "foreign") }

// homes are the homes of the two backends.
func (s *soak) homes() []string {
	return []string{filepath.Join(s.daemon.root, "containerd", "btrfs"), filepath.Join(s.commandRoot(), "btrfs")}
}

func (s *soak) count(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[kind]++
}

// TestSoak has clients work at random on a small btrfs, while the chaos kinds happen to daemon and filesystem.
// Acknowledged changes hold, and in the end nothing is left. In the second half of the rounds the daemon lives on: it
// does not grow from one moment of rest to the next.
func TestSoak(t *testing.T) {
	duration := 2 * time.Minute
	if testfs.Long() {
		duration = time.Hour
	}
	if text := os.Getenv(durationEnv); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	seed := rand.Uint64()
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 0, 64)
		require.NoError(t, err)
	}
	t.Logf("%s=%#x, which does not fix what happens at once", seedEnv, seed)
	s := newSoak(t)
	rng := rand.New(rand.NewPCG(seed, 2))

	rounds := max(roundsOfAll, int(duration/longRound))
	var sizes []size
	for round := range rounds {
		kills := round < rounds/2
		s.round(rng, duration/time.Duration(rounds), kills)
		if t.Failed() {
			t.Fatalf("in round %d of %d", round+1, rounds)
		}
		if !kills {
			sizes = append(sizes, s.size())
		}
	}
	t.Logf("events: %v", s.counts)
	for _, kind := range []string{"kill", "term", "signal", "space", "foreign"} {
		if s.chaos[kind] {
			assert.Positive(t, s.counts[kind], "%s happened", kind)
		}
	}
	s.checkGrowth(sizes)
	s.end()
}

func newSoak(t *testing.T) *soak {
	mode := os.Getenv(quotaEnv)
	var opts []testfs.BtrfsOption
	switch mode {
	case "":
		mode = "simple"
	case "classic":
		opts = append(opts, testfs.WithClassicQuota())
	}
	s := &soak{t: t, mnt: testfs.Btrfs(t, opts...), dir: t.TempDir(), chaos: make(map[string]bool), counts: make(map[string]int)}
	s.ctx, s.fail = context.WithCancelCause(namespaces.WithNamespace(context.Background(), "soak"))
	t.Cleanup(func() { s.fail(nil) })
	kinds := chaosKinds
	if text := os.Getenv(chaosEnv); text != "" {
		kinds = strings.Split(text, ",")
	}
	for _, kind := range kinds {
		if kind != "none" {
			require.Contains(t, chaosKinds, kind)
			s.chaos[kind] = true
		}
	}
	if mode == "off" {
		s.chaos["limit"] = false
	}
	s.program = buildProgram(t, filepath.Join(s.dir, "cowshed"))
	s.daemon = &daemon{program: buildDaemon(t, s.dir), root: filepath.Join(s.mnt, "root"), dir: s.dir, quota: mode, failed: s.fail}
	store, err := contentstore.Open(t.TempDir())
	require.NoError(t, err)
	stop, err := contentstore.Serve(store, s.daemon.socket("containerd"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stop()) })
	require.NoError(t, s.daemon.start(), "%s", s.log())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log ends:\n%s", s.log())
		}
		if s.daemon.running() {
			assert.NoError(t, s.daemon.stop())
		}
	})
	s.makeBase()
	_, err = newCommander(s, "first", 0).cowshed("init")
	require.NoError(t, err)
	return s
}

// log returns the end of the daemon's log.
func (s *soak) log() string {
	text, err := os.ReadFile(s.daemon.logFile())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-16<<10):])
}

// makeBase makes the snapshot that all others come from.
func (s *soak) makeBase() {
	c, err := newClient(s, "base", 0)
	require.NoError(s.t, err)
	defer c.conn.Close()
	_, err = c.s.Prepare(s.ctx, "base-active", "")
	require.NoError(s.t, err)
	s.base = make(tree)
	require.NoError(s.t, c.in("base-active", func(dir string) error { return s.base.edit(c.rng, dir) }))
	require.NoError(s.t, c.s.Commit(s.ctx, baseKey, "base-active"))
}

// worker is a client of either kind.
type worker interface {
	run(ctx context.Context) error
	checkAll() error
	removeAll() error
}

// round has everybody work for a time, then checks the state, and has everything removed.
func (s *soak) round(rng *rand.Rand, length time.Duration, kills bool) {
	var workers []worker
	operations := func() (n int) {
		for _, w := range workers {
			switch w := w.(type) {
			case *client:
				n += w.done
			case *commander:
				n += w.done
			}
		}
		return n
	}
	for i := range clients {
		c, err := newClient(s, fmt.Sprintf("client%d", i), rng.Uint64())
		require.NoError(s.t, err)
		defer c.conn.Close()
		workers = append(workers, c)
	}
	for i := range commanders {
		workers = append(workers, newCommander(s, fmt.Sprintf("commander%d", i), rng.Uint64()))
	}

	begun := time.Now()
	ctx, cancel := context.WithTimeout(s.t.Context(), length)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, w := range workers {
		group.Go(func() error { return w.run(ctx) })
	}
	chaos := rand.New(rand.NewPCG(rng.Uint64(), 3))
	group.Go(func() error { return s.disturb(ctx, chaos, kills) })
	err := group.Wait()
	assert.NoError(s.t, context.Cause(s.ctx))
	if !assert.NoError(s.t, err) {
		return
	}
	rest := time.Now()
	s.waitIdle()
	if s.each(workers, worker.checkAll); s.t.Failed() {
		return
	}
	s.each(workers, worker.removeAll)
	s.checkEmpty()
	s.t.Logf("kills %v: %d operations in %.1f s, looked at and removed in %.1f s", kills, operations(),
		rest.Sub(begun).Seconds(), time.Since(rest).Seconds())
}

// each has all workers do something at once.
func (s *soak) each(workers []worker, do func(w worker) error) {
	s.t.Helper()
	var group errgroup.Group
	for _, w := range workers {
		group.Go(func() error { return do(w) })
	}
	assert.NoError(s.t, group.Wait())
}

// waitIdle waits until the daemon works on no request: a cancelled request may go on for a moment.
func (s *soak) waitIdle() {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		page, err := s.daemon.metrics()
		running := 0.0
		for name, value := range page {
			if strings.HasPrefix(name, "cowshed_operations_running") {
				running += value
			}
		}
		return err == nil && running == 0
	}, testfs.Patience, 50*time.Millisecond, "requests go on")
}

// checkEmpty checks that only the base is left, after everybody has removed their snapshots.
func (s *soak) checkEmpty() {
	s.t.Helper()
	c, err := newClient(s, "last", 0)
	require.NoError(s.t, err)
	defer c.conn.Close()
	require.NoError(s.t, c.cleanup())
	var keys []string
	require.NoError(s.t, c.s.Walk(s.ctx, func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}))
	assert.Equal(s.t, []string{baseKey}, keys)
	names, err := newCommander(s, "last", 0).names()
	require.NoError(s.t, err)
	assert.Empty(s.t, names)
	require.NoError(s.t, s.removeForeign(0))
	testfs.WaitDeleted(s.t, s.mnt)
	want := []string{"commands/btrfs", "root/containerd/btrfs"}
	var others []string
	for _, path := range testfs.Subvolumes(s.t, s.mnt) {
		if strings.HasPrefix(path, "root/containerd/btrfs/subvolumes/") {
			want = append(want, path)
			others = append(others, path)
		}
	}
	slices.Sort(want)
	assert.Equal(s.t, want, testfs.Subvolumes(s.t, s.mnt))
	assert.Len(s.t, others, 1, "volumes of the daemon: the one of the base")
	for _, home := range s.homes() {
		for _, name := range []string{"staging", "views"} {
			entries, err := os.ReadDir(filepath.Join(home, name))
			require.NoError(s.t, err)
			assert.Empty(s.t, entries, "%s of %s", name, home)
		}
	}
	mounts, err := os.ReadDir(filepath.Join(s.dir, "mounts"))
	require.NoError(s.t, err)
	for _, m := range mounts {
		left, err := os.ReadDir(filepath.Join(s.dir, "mounts", m.Name()))
		require.NoError(s.t, err)
		assert.Empty(s.t, left, "mounted for %s", m.Name())
	}
}

// size is the daemon's use of the machine at rest.
func (s *soak) size() size {
	s.t.Helper()
	var least size
	// Connections that were closed take a moment to end.
	for i := range 20 {
		now, err := s.daemon.size()
		require.NoError(s.t, err)
		if i == 0 {
			least = now
		}
		least.goroutines = min(least.goroutines, now.goroutines)
		least.descriptors = min(least.descriptors, now.descriptors)
		least.memory = min(least.memory, now.memory)
		time.Sleep(50 * time.Millisecond)
	}
	return least
}

// checkGrowth compares a daemon at the end with itself at the first moments of rest. Whatever is on its way out at the end may
// take its time.
func (s *soak) checkGrowth(sizes []size) {
	s.t.Helper()
	for _, at := range sizes {
		s.t.Logf("at rest: %+v", at)
	}
	early := sizes[0]
	if len(sizes) >= 2*settling {
		early = sizes[settling]
	}
	require.Equal(s.t, early.pid, sizes[len(sizes)-1].pid, "the daemon was not to be killed meanwhile")
	assert.EventuallyWithT(s.t, func(c *assert.CollectT) {
		late, err := s.daemon.size()
		require.NoError(c, err)
		assert.LessOrEqual(c, late.goroutines, early.goroutines+2, "goroutines")
		assert.LessOrEqual(c, late.descriptors, early.descriptors+1, "descriptors")
		assert.LessOrEqual(c, late.memory, early.memory*3/2, "bytes of memory")
	}, testfs.Patience, 50*time.Millisecond)
}

// settling is how many rounds a daemon may take to come to its size.
const settling = 2

// end removes the last, stops the daemon, and finds neither volume nor qgroup.
func (s *soak) end() {
	c, err := newClient(s, "last", 0)
	require.NoError(s.t, err)
	defer c.conn.Close()
	require.NoError(s.t, c.s.Remove(s.ctx, baseKey))
	require.NoError(s.t, c.cleanup())
	_, err = c.s.Stat(s.ctx, baseKey)
	require.ErrorIs(s.t, err, errdefs.ErrNotFound)
	testfs.WaitDeleted(s.t, s.mnt)
	// A start works through the marks of qgroups that could not go when their volumes did.
	require.NoError(s.t, s.daemon.restart(syscall.SIGTERM))
	_, err = newCommander(s, "last", 0).names()
	require.NoError(s.t, err)
	require.NoError(s.t, s.daemon.stop())
	assert.Equal(s.t, []string{"commands/btrfs", "root/containerd/btrfs"}, testfs.Subvolumes(s.t, s.mnt))
	assert.Empty(s.t, testfs.StaleQgroups(s.t, s.mnt))
	for _, home := range s.homes() {
		entries, err := os.ReadDir(filepath.Join(home, "removing"))
		require.NoError(s.t, err)
		assert.Empty(s.t, entries, "removing of %s", home)
	}
	log, err := os.ReadFile(s.daemon.logFile())
	require.NoError(s.t, err)
	for _, word := range []string{"DATA RACE", "panic:", "fatal error:"} {
		assert.NotContains(s.t, string(log), word)
	}
}
