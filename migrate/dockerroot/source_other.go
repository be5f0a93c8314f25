//go:build !linux

package dockerroot

import (
	"context"

	"github.com/containerd/errdefs"
)

// InUse implements migrate.Source.
func (s *Source) InUse(context.Context) error { return errdefs.ErrNotImplemented }

// Remove implements migrate.Source.
func (s *Source) Remove(context.Context) error { return errdefs.ErrNotImplemented }

// Idle returns ErrFailedPrecondition if an engine works on the root at dir, with any driver.
func Idle(context.Context, string) error { return errdefs.ErrNotImplemented }
