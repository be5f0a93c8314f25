package detect

import (
	"fmt"
	"syscall"

	"github.com/cowshed/cowshed/graphdriver"
)

// ReadOnlyError says that a filesystem cannot be written to. It is a graphdriver.ErrIncompatibleFS, since a driver
// cannot work there, and a syscall.EROFS. Existing layers can be read all the same.
type ReadOnlyError struct {
	What   string // the filesystem, pool or dataset
	Cause  string // why it is so
	Advice string // what to do about it
}

// Error implements error.
func (e *ReadOnlyError) Error() string {
	return fmt.Sprintf("%s is read-only: %s: %s", e.What, e.Cause, e.Advice)
}

// Unwrap returns the kinds of error that it is.
func (e *ReadOnlyError) Unwrap() []error {
	return []error{graphdriver.ErrIncompatibleFS, syscall.EROFS}
}
