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

	mu    sync.Mutex
	ended bool
	short uses // that close waits for
	long  uses
}

// uses are uses of a backend that have not ended.
type uses struct {
	number int
	active sync.WaitGroup
}

func newScrapes(ctx context.Context, b cowcommon.Backend, patience time.Duration) *scrapes {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // metrics are answered until the backend is closed
	return &scrapes{backend: b, patience: patience, ctx: ctx, cancel: cancel}
}

// do calls f, unless the backend is to be closed. It stays open until f returns.
func (s *scrapes) do(f func(ctx context.Context, b cowcommon.Backend)) { s.use(&s.short, f) }

// doLong is do for an f that the caller of close has waited for already, as long as anybody should. So close does not wait for it.
func (s *scrapes) doLong(f func(ctx context.Context, b cowcommon.Backend)) { s.use(&s.long, f) }

func (s *scrapes) use(u *uses, f func(ctx context.Context, b cowcommon.Backend)) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	u.active.Add(1)
	u.number++
	s.mu.Unlock()
	defer u.active.Done()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		u.number--
	}()
	f(s.ctx, s.backend)
}

// isLong reports whether a use by doLong has not ended.
func (s *scrapes) isLong() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.long.number > 0
}

// close calls closeBackend when nobody uses the backend any more. While a use by doLong goes on, close returns nil at once, and
// calls it later. So it does if counting takes too long, but then the error is errdefs.ErrUnavailable.
func (s *scrapes) close(closeBackend func() error) error {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	counted, closed := make(chan struct{}), make(chan error, 1)
	go func() {
		s.short.active.Wait()
		close(counted)
		s.long.active.Wait()
		closed <- closeBackend()
	}()
	patience := time.NewTimer(s.patience)
	defer patience.Stop()
	select {
	case <-counted:
	case <-patience.C:
		return errSilent
	}
	if s.isLong() {
		return nil
	}
	select {
	case err := <-closed:
		return err
	case <-patience.C:
		return errSilent
	}
}

var errSilent = fault.New(errdefs.ErrUnavailable, "the filesystem does not answer, so the volumes are closed later")
