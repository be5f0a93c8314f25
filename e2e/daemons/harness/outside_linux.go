package harness

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
)

// Outside runs f with a harness where there is no test: in a program. The effects of f are taken back when it
// returns, as at the end of a test. Outside returns the error of f, and errors that would have made a test fail.
func Outside(f func(t testing.TB) error) error {
	o := &outside{}
	o.run(func() {
		if err := f(o); err != nil {
			o.errs = append(o.errs, err)
		}
	})
	for len(o.cleanups) > 0 {
		last := len(o.cleanups) - 1
		cleanup := o.cleanups[last]
		o.cleanups = o.cleanups[:last]
		o.run(cleanup)
	}
	return errors.Join(o.errs...)
}

// outside is that part of a test that the harness uses.
type outside struct {
	testing.TB // nil

	errs     []error
	cleanups []func()
}

// run calls f on a goroutine of its own, which Fatalf ends.
func (o *outside) run(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func (*outside) Helper() {}

func (o *outside) Cleanup(f func()) { o.cleanups = append(o.cleanups, f) }

func (o *outside) Failed() bool { return len(o.errs) > 0 }

// Logf is called with the logs of daemons when something has failed.
func (o *outside) Logf(format string, args ...any) { o.Errorf(format, args...) }

func (o *outside) Errorf(format string, args ...any) {
	o.errs = append(o.errs, fmt.Errorf(format, args...))
}

func (o *outside) Fatalf(format string, args ...any) {
	o.Errorf(format, args...)
	runtime.Goexit()
}

// Skipf fails: a program that cannot do its task has failed.
func (o *outside) Skipf(format string, args ...any) { o.Fatalf(format, args...) }
