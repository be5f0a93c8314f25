// Package eintr repeats system calls that a signal has interrupted, as Go's own preemption of goroutines does.
package eintr

import "syscall"

// Ignore calls call until it does not fail with EINTR, and returns its error.
func Ignore(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR { //nolint:errorlint // a bare errno, on hot paths
			return err
		}
	}
}

// Retry repeats call while it fails with EINTR, and returns the last result.
func Retry[T any](call func() (T, error)) (T, error) {
	for {
		result, err := call()
		if err != syscall.EINTR { //nolint:errorlint // a bare errno, on hot paths
			return result, err
		}
	}
}
