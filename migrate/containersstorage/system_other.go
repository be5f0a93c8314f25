//go:build !linux

package containersstorage

import (
	"context"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

func checkOwner(*rootdir.Dir) error { return errdefs.ErrNotImplemented }

func isSubvolume(*os.File) (bool, error) { return false, errdefs.ErrNotImplemented }

func datasetOf(string) (string, error) { return "", errdefs.ErrNotImplemented }

func (s *Source) checkDataset(context.Context, string) error { return errdefs.ErrNotImplemented }

func openDataset(context.Context, string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

// InUse implements migrate.Source.
func (s *Source) InUse(context.Context) error { return errdefs.ErrNotImplemented }

// Remove implements migrate.Source.
func (s *Source) Remove(context.Context) error { return errdefs.ErrNotImplemented }
