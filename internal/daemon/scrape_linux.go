package daemon

import (
	"context"
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
	active sync.WaitGroup
}

func newScrapes(ctx context.Context, b cowcommon.Backend, patience time.Duration) *scrapes {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // metrics are answered until the backend is closed
	return &scrapes{backend: b, patience: patience, ctx: ctx, cancel: cancel}
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
	case <-time.After(s.patience):
		return fault.New(errdefs.ErrUnavailable, "the filesystem does not answer, so the volumes are closed later")
	}
}
