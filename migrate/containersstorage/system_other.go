//go:build !linux

package containersstorage

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

func checkOwner(*rootdir.Dir) error { return errdefs.ErrNotImplemented }

// InUse implements migrate.Source.
func (s *Source) InUse(context.Context) error { return errdefs.ErrNotImplemented }

// Remove implements migrate.Source.
func (s *Source) Remove(context.Context) error { return errdefs.ErrNotImplemented }
