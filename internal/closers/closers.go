// Package closers closes several things together.
package closers

import (
	"errors"
	"slices"
)

// Closers are functions that close things, in the order in which the things were opened.
type Closers []func() error

// Add adds a function.
func (c *Closers) Add(f func() error) { *c = append(*c, f) }

// Close calls all functions once, the last first.
func (c *Closers) Close() error {
	var errs []error
	for _, f := range slices.Backward(*c) {
		errs = append(errs, f())
	}
	*c = nil
	return errors.Join(errs...)
}
