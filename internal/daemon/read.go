package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

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
	name := ""
	for _, driver := range graphdriver.Drivers() {
		if _, err := os.Lstat(filepath.Join(dir, driver)); err == nil && (c.Driver == autoDriver || c.Driver == driver) {
			name = driver
			break
		}
	}
	if name == "" {
		return nil, fault.New(errdefs.ErrNotFound, "there are no volumes in %s", dir)
	}
	opened, err := graphdriver.Open(ctx, name, graphdriver.Options{Root: dir, ReadOnly: true, DriverOptionsFor: c.driverOptions, Logger: log})
	if err != nil {
		return nil, err
	}
	driver, ok := opened.(*cowdriver.Driver)
	if !ok {
		return nil, errors.Join(fault.New(errdefs.ErrNotImplemented, "storage driver %s", opened), opened.Cleanup())
	}
	return driver, nil
}
