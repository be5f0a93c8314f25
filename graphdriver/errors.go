package graphdriver

import (
	"errors"
	"fmt"
	"strings"
)

const (
	// ErrNotSupported says that the platform has no such driver, or no driver of that name was registered.
	ErrNotSupported NotSupportedError = "driver not supported"

	// ErrPrerequisites says that the driver lacks a requirement: the root is on another filesystem, or a kernel
	// module, device or command is missing.
	ErrPrerequisites NotSupportedError = "prerequisites for driver not satisfied (wrong filesystem?)"

	// ErrIncompatibleFS says that the root is on the driver's filesystem, in a state that the driver cannot work on,
	// such as read-only.
	ErrIncompatibleFS NotSupportedError = "backing file system is unsupported for this graph driver"
)

// ErrUnSupported is implemented by errors which say that a driver cannot work in this place, as opposed
// to having failed there.
type ErrUnSupported interface {
	NotSupported()
}

// NotSupportedError is an error which says that a driver cannot work in this place. A driver gives the
// reason by wrapping one of the constants: fmt.Errorf("%w: %s is read-only", ErrIncompatibleFS, root).
type NotSupportedError string

// Error implements error.
func (e NotSupportedError) Error() string { return string(e) }

// NotSupported implements ErrUnSupported.
func (e NotSupportedError) NotSupported() {}

// IsDriverNotSupported reports whether err, or an error that it wraps, says that the driver cannot work in this
// place. Another driver may then be tried.
func IsDriverNotSupported(err error) bool {
	var unsupported ErrUnSupported
	return errors.As(err, &unsupported)
}

// AmbiguousError is the error of [New] if it is to find the driver by the existing layers, and several drivers have
// layers.
type AmbiguousError struct {
	Root    string
	Drivers []string // sorted
}

// Error implements error.
func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("graphdriver: %s holds layers of several drivers (%s): name the one to use, or remove the others' directories",
		e.Root, strings.Join(e.Drivers, ", "))
}
