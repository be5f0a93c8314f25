package zfs

import (
	"sync"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// sequel has the functions that follow a call which was left to itself. They are called one after the other, in the order
// in which they were given: a lock that was taken first is given up last.
type sequel struct {
	op string // of the call

	mu    sync.Mutex
	steps []func() error
	ended bool // no function is waiting, and none will
}

// add adds a function, unless the last one was called already.
func (s *sequel) add(f func() error) (added bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.steps = append(s.steps, f)
	return true
}

// next takes the next function. After the last there will be no other.
func (s *sequel) next() (f func() error, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.steps) == 0 {
		s.ended = true
		return nil, false
	}
	f, s.steps = s.steps[0], s.steps[1:]
	return f, true
}

// after calls f. If err says that calls were left to themselves, after returns at once. Then f is called when these calls
// have ended, their outcome is settled, and the functions before f have ended.
func (b *Backend) after(err error, f func() error) error { return afterAll(leftIn(err), f) }

func afterAll(left []*lostError, f func() error) error {
	if len(left) == 0 {
		return f()
	}
	rest := func() error { return afterAll(left[1:], f) }
	if left[0].next.add(rest) {
		return nil
	}
	return rest()
}

// follow calls the functions of a sequel, and then done. If a call of such a function was left to itself, the others wait
// for it.
func (b *Backend) follow(s *sequel, done func()) {
	for {
		f, ok := s.next()
		if !ok {
			done()
			return
		}
		err := f()
		if err != nil {
			b.log.Warn("zfs: a step after an abandoned call of the kernel failed", "call", s.op, "error", err)
		}
		if isLeft(err) {
			_ = b.after(err, func() error { b.follow(s, done); return nil })
			return
		}
	}
}

// isLeft reports whether err says that a call was left to itself.
func isLeft(err error) bool { return len(leftIn(err)) > 0 }

// leftIn finds the calls in an error that were left to themselves.
func leftIn(err error) []*lostError {
	switch err := err.(type) { //nolint:errorlint // it looks at each error of the tree
	case *lostError:
		if err.next != nil {
			return []*lostError{err}
		}
	case *fault.Error: // it unwraps its kind alone
		return leftIn(err.Err)
	case interface{ Unwrap() error }:
		return leftIn(err.Unwrap())
	case interface{ Unwrap() []error }:
		var left []*lostError
		for _, err := range err.Unwrap() {
			left = append(left, leftIn(err)...)
		}
		return left
	}
	return nil
}
