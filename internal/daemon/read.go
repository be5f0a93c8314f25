package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// OpenToRead opens the driver of containerd's volumes for reading alone, while a daemon runs or not. Returns
// errdefs.ErrNotFound if there are no volumes. The caller calls Cleanup.
func OpenToRead(ctx context.Context, c Config, log *slog.Logger) (*cowdriver.Driver, error) {
	root, err := filepath.EvalSymlinks(c.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(errdefs.ErrNotFound, "%w", err)
	}
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(root, containerdDir)
	with, err := graphdriver.Prior(dir)
	if err != nil {
		return nil, err
	}
	name := c.Driver
	if name == autoDriver {
		name = ""
	}
	if len(with) == 0 || name != "" && !slices.Contains(with, name) {
		return nil, fault.New(errdefs.ErrNotFound, "there are no volumes in %s", dir)
	}
	return cowdriver.OpenDriver(ctx, name, graphdriver.Options{Root: dir, ReadOnly: true, DriverOptionsFor: c.driverOptions, Logger: log})
}
