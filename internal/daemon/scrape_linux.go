package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
)

// closePatience is how long the end of a backend waits for metrics that are being counted, which are told to stop.
const closePatience = 10 * time.Second

// scrapes lets metrics be counted on a backend, and knows when they have been.
type scrapes struct {
	backend cowcommon.Backend
	ctx     context.Context // done when the backend is to be closed
	cancel  context.CancelFunc

	mu     sync.Mutex
	ended  bool
	active sync.WaitGroup
}

func newScrapes(b cowcommon.Backend) *scrapes {
	ctx, cancel := context.WithCancel(context.Background())
	return &scrapes{backend: b, ctx: ctx, cancel: cancel}
}

// do calls f, unless the backend is to be closed. It stays open until f returns.
func (s *scrapes) do(f func(ctx context.Context, b cowcommon.Backend)) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.active.Add(1)
	s.mu.Unlock()
	defer s.active.Done()
	f(s.ctx, s.backend)
}

// close calls closeBackend when nothing is counted any more. If that takes too long, it is called later, and the error
// is errdefs.ErrUnavailable.
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
	case <-time.After(closePatience):
		return fmt.Errorf("the filesystem does not answer, so the volumes are closed later: %w", errdefs.ErrUnavailable)
	}
}
