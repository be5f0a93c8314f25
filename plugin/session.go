package plugin

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
)

// session is the life of one driver, from the engine's Init on.
type session struct {
	driver graphdriver.Driver
	ctx    context.Context // done when the driver is to be closed
	cancel context.CancelCauseFunc
	users  sync.WaitGroup // calls and streams under way

	mu       sync.Mutex
	streams  map[string]int // by layer
	lessToDo chan struct{}  // closed, and made anew, when a stream ends
}

func newSession(driver graphdriver.Driver) *session {
	// A root: the engine's requests come and go while the driver is open, and have no context here.
	ctx, cancel := context.WithCancelCause(context.Background())
	return &session{driver: driver, ctx: ctx, cancel: cancel, streams: make(map[string]int), lessToDo: make(chan struct{})}
}

// done ends one use.
func (s *session) done() { s.users.Done() }

// close breaks the streams, waits for all uses to end, and closes the driver. No further use may begin. If that takes
// longer than patience it goes on by itself, log is told how it ends, and the error is errdefs.ErrUnavailable.
func (s *session) close(cause error, patience time.Duration, log *slog.Logger) error {
	s.cancel(cause)
	closed, late := make(chan error), make(chan struct{})
	go func() {
		s.users.Wait()
		err := s.driver.Cleanup()
		select {
		case closed <- err:
		case <-late:
			log.Info("a driver that was still in use is closed", "error", err)
		}
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(patience):
		close(late)
		return fault.New(errdefs.ErrUnavailable, "requests that use the driver have not ended after %s; it is closed when they have", patience)
	}
}

// interrupt calls archive's Interrupt, if it has one, when the driver is to be closed before stop is called.
func (s *session) interrupt(archive io.Reader) (stop func() bool) {
	return context.AfterFunc(s.ctx, func() {
		if archive, ok := archive.(interface{ Interrupt() }); ok {
			archive.Interrupt()
		}
	})
}

// stream counts a stream of the given layers until end is called.
func (s *session) stream(layers ...string) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range layers {
		s.streams[id]++
	}
	return sync.OnceFunc(func() { s.endStream(layers) })
}

func (s *session) endStream(layers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range layers {
		if s.streams[id]--; s.streams[id] == 0 {
			delete(s.streams, id)
		}
	}
	close(s.lessToDo)
	s.lessToDo = make(chan struct{})
}

// waitForStreams waits until the layer has no stream, for ten seconds at most.
func (s *session) waitForStreams(id string) {
	giveUp := time.NewTimer(10 * time.Second)
	defer giveUp.Stop()
	for {
		s.mu.Lock()
		n, changed := s.streams[id], s.lessToDo
		s.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-changed:
		case <-giveUp.C:
			return
		}
	}
}

// reader counts as a use of the session until it is closed, and calls end then. It is called within another
// use.
func (s *session) reader(r io.ReadCloser, end func()) io.ReadCloser {
	s.users.Add(1)
	closeReader := sync.OnceValue(r.Close)
	return &sessionReader{
		Reader: r,
		ctx:    s.ctx,
		stop:   context.AfterFunc(s.ctx, func() { _ = closeReader() }), // Close returns the error
		close:  closeReader,
		done:   sync.OnceFunc(func() { end(); s.done() }),
	}
}

type sessionReader struct {
	io.Reader
	ctx   context.Context
	stop  func() bool
	close func() error
	done  func()
}

// Read never ends without an error if the driver's reader was closed for it.
func (r *sessionReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && r.ctx.Err() != nil {
		err = context.Cause(r.ctx)
	}
	return n, err
}

// Close closes the driver's reader. Closing twice does nothing.
func (r *sessionReader) Close() error {
	defer r.done()
	r.stop()
	return r.close()
}

// failedReader is a diff that could not be begun.
type failedReader struct{ err error }

func (r failedReader) Read([]byte) (int, error) { return 0, r.err }

func (r failedReader) Close() error { return nil }
