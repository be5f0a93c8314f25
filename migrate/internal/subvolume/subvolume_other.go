//go:build !linux

package subvolume

import (
	"context"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Is reports whether an open directory is the root of a subvolume of btrfs.
func Is(*os.File) bool { return false }

// DestroyIn destroys the subvolumes in a directory.
func DestroyIn(context.Context, *rootdir.Dir, string) error { return errdefs.ErrNotImplemented }
