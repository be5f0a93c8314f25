//go:build !linux

package rootuse

import (
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Mounts returns fault.ErrInUse if one of the named directories is mounted.
func Mounts(*rootdir.Dir, []string) error { return errdefs.ErrNotImplemented }

// Locked returns fault.ErrInUse if a process holds a lock on the file.
func Locked(*os.File) error { return errdefs.ErrNotImplemented }

// Process returns fault.ErrInUse if such a process runs.
func Process(string, func(argument string) bool) error { return errdefs.ErrNotImplemented }
