package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// signalError is the cause of a context that a signal has ended.
type signalError struct{ signal syscall.Signal }

// Error implements error.
func (e signalError) Error() string { return fmt.Sprintf("stopped by signal: %v", e.signal) }

// Is makes an error with this cause one of a cancelled context.
func (e signalError) Is(target error) bool { return target == context.Canceled }

// notifyContext returns a context that ends with the first signal to stop. The second one has its usual
// effect. Until then a reader of the output that goes away is an error of writing, and not the end: there
// may be something to clean up.
func notifyContext(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	pipes := make(chan os.Signal, 1) // nobody reads it: programs that are started would inherit that a signal is ignored
	signal.Notify(pipes, syscall.SIGPIPE)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			if number, ok := s.(syscall.Signal); ok {
				cancel(signalError{number})
			}
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}
