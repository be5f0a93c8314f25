//go:build !linux

package rootuse

import (
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Mounts returns fault.ErrInUse if one of the named directories is mounted.
func Mounts(*rootdir.Dir, []string) error { return errdefs.ErrNotImplemented }

// Locked returns fault.ErrInUse if a process holds a lock of fcntl(2) on the file.
func Locked(*rootdir.Dir, string) error { return errdefs.ErrNotImplemented }

// Locks are locks of files in a root.
type Locks struct{}

// Release gives all locks back.
func (*Locks) Release() error { return nil }

// Process returns fault.ErrInUse if such a process runs.
func Process(string, func(argument string) bool) error { return errdefs.ErrNotImplemented }
