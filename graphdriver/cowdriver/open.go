package cowdriver

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
)

// OpenDriver is graphdriver.Open of a driver that has a Backend. Returns ErrNotImplemented if the driver has none. The caller
// calls Cleanup.
func OpenDriver(ctx context.Context, name string, options graphdriver.Options) (*Driver, error) {
	opened, err := graphdriver.Open(ctx, name, options)
	if err != nil {
		return nil, err
	}
	driver, ok := opened.(*Driver)
	if !ok {
		return nil, errors.Join(fault.Said(errdefs.ErrNotImplemented, "storage driver %s", opened), opened.Cleanup())
	}
	return driver, nil
}
