package daemon

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// scrapes lets metrics be counted on a backend, and knows when they have been.
type scrapes struct {
	backend  cowcommon.Backend
	patience time.Duration   // how long the end of the backend waits
	ctx      context.Context // done when the backend is to be closed
	cancel   context.CancelFunc

	mu     sync.Mutex
	ended  bool
	uses   map[string]int // that have not ended, by the reason for which one may take long
	active sync.WaitGroup
}

// silent is the reason for which counting may take long.
const silent = "the filesystem does not answer"

func newScrapes(ctx context.Context, b cowcommon.Backend, patience time.Duration) *scrapes {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // metrics are answered until the backend is closed
	return &scrapes{backend: b, patience: patience, ctx: ctx, cancel: cancel, uses: make(map[string]int)}
}

// do calls f, unless the backend is to be closed. It stays open until f returns.
func (s *scrapes) do(f func(ctx context.Context, b cowcommon.Backend)) { s.doLong(silent, f) }

// doLong is do with a reason for which f may take long.
func (s *scrapes) doLong(reason string, f func(ctx context.Context, b cowcommon.Backend)) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.active.Add(1)
	s.uses[reason]++
	s.mu.Unlock()
	defer s.active.Done()
	defer s.end(reason)
	f(s.ctx, s.backend)
}

func (s *scrapes) end(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses[reason]--; s.uses[reason] == 0 {
		delete(s.uses, reason)
	}
}

// reasons are those for which uses have not ended; silent if all have, and the backend does not close.
func (s *scrapes) reasons() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.uses) == 0 {
		return silent
	}
	return strings.Join(slices.Sorted(maps.Keys(s.uses)), ", and ")
}

// close calls closeBackend when nothing is counted any more. If that takes too long, it is called later, and the error
// is errdefs.ErrUnavailable, with the reason.
func (s *scrapes) close(closeBackend func() error) error {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	closed := make(chan error, 1)
	go func() {
		s.active.Wait()
		closed <- closeBackend()
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(s.patience):
		return fault.New(errdefs.ErrUnavailable, "%s, so the volumes are closed later", s.reasons())
	}
}
