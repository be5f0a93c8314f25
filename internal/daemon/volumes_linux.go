package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// openDriver opens a storage driver in dir, in a directory of the driver's name. The name "auto" stands for the
// driver with volumes there, else for the driver that fits the filesystem. options returns the options of a driver by
// its name.
func openDriver(ctx context.Context, dir, name string, options func(driver string) []string, idMap user.IdentityMapping, log *slog.Logger) (_ *cowdriver.Driver, err error) {
	_, statErr := os.Lstat(dir)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && errors.Is(statErr, fs.ErrNotExist) {
			_ = os.Remove(dir) // "cowshed init --loop", which may be the way out, wants an empty root
		}
	}()
	for _, r := range cowdriver.Registered() {
		if r.CheckShared == nil {
			continue
		}
		if err := r.CheckShared(dir, options(r.Name)); err != nil {
			return nil, err
		}
	}
	unusable := map[string]error{} // drivers, with the reason
	config := graphdriver.Options{Root: dir, DriverOptionsFor: options, IDMap: idMap, Logger: log}
	if name == autoDriver {
		name = ""
		config.DriverOptionsFor = func(driver string) []string {
			if r, ok := cowdriver.Lookup(driver); ok {
				if unusable[driver] = r.Usable(ctx, filepath.Join(dir, driver)); unusable[driver] != nil {
					return nil // some may be another driver's, and it is to say why it cannot work
				}
			}
			return options(driver)
		}
	}
	driver, err := cowdriver.OpenDriver(ctx, name, config)
	if err != nil {
		return nil, err
	}
	if err := unusable[driver.String()]; err != nil { // it has become usable since, and has no options
		return nil, errors.Join(fmt.Errorf("%s: %w", driver, err), driver.Cleanup())
	}
	return driver, nil
}
