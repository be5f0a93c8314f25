//go:build !linux

package dockerroot

import (
	"context"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// InUse implements migrate.Source.
func (s *Source) InUse(context.Context) error { return errdefs.ErrNotImplemented }

// Remove implements migrate.Source.
func (s *Source) Remove(context.Context) error { return errdefs.ErrNotImplemented }

func isSubvolume(*os.File) bool { return false }

func removeTree(context.Context, *rootdir.Dir, string, bool) error { return errdefs.ErrNotImplemented }

func newDatasets(context.Context, *rootdir.Dir, string) (keeper, error) {
	return nil, errdefs.ErrNotImplemented
}

// Idle returns ErrFailedPrecondition if an engine works on the root at dir, with any driver.
func Idle(context.Context, string) error { return errdefs.ErrNotImplemented }
