//go:build !linux

package oldgraph

import (
	"context"
	"os"

	"github.com/containerd/errdefs"
)

// InUse implements migrate.Source.
func (s *Source) InUse(context.Context) error { return errdefs.ErrNotImplemented }

// Remove implements migrate.Source.
func (s *Source) Remove(context.Context) error { return errdefs.ErrNotImplemented }

func lock(*os.File) error { return errdefs.ErrNotImplemented }

func (m *mover) renameNames() error { return errdefs.ErrNotImplemented }

func (m *mover) fill(entry, *os.File, *os.File) (isLinked bool, err error) {
	return false, errdefs.ErrNotImplemented
}

func (m *mover) discard(entry, *os.File) error { return errdefs.ErrNotImplemented }
