//go:build !linux

package oldgraph

import (
	"context"

	"github.com/containerd/errdefs"
)

// InUse implements migrate.Source.
func (s *Source) InUse(context.Context) error { return errdefs.ErrNotImplemented }

// Remove implements migrate.Source.
func (s *Source) Remove(context.Context) error { return errdefs.ErrNotImplemented }
