//go:build !linux

package removal

import (
	"context"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Names removes the named files and directories in a directory.
func Names(context.Context, *os.File, ...string) error { return errdefs.ErrNotImplemented }

// In is Names for the directory dir of a root.
func In(context.Context, *rootdir.Dir, string, ...string) error { return errdefs.ErrNotImplemented }

// Tree removes a directory and all in it, and makes that durable.
func Tree(context.Context, *rootdir.Dir, string) error { return errdefs.ErrNotImplemented }

// Sync makes the changes of a directory's filesystem durable.
func Sync(*rootdir.Dir, string) error { return errdefs.ErrNotImplemented }
