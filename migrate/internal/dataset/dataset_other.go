//go:build !linux

package dataset

import (
	"context"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Holder is the dataset that a root is in, unless it is given.
func Holder(*rootdir.Dir, string) (string, error) { return "", errdefs.ErrNotImplemented }

// Children lists the datasets in a holder, by ID.
func Children(context.Context, string) (map[string]Dataset, error) {
	return nil, errdefs.ErrNotImplemented
}

// Open mounts a dataset on no directory, for reading, and opens its root.
func Open(context.Context, string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

// InUse returns fault.ErrInUse if a child is mounted.
func InUse(string, func(id string) bool) error { return errdefs.ErrNotImplemented }

// Destroy destroys children of a holder.
func Destroy(context.Context, string, map[string]Dataset) error { return errdefs.ErrNotImplemented }
