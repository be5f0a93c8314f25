package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// openDriver opens a storage driver in dir, in a directory of the driver's name. The name "auto" stands for the
// driver with volumes there, else for the driver that fits the filesystem. options returns the options of a driver by
// its name.
func openDriver(dir, name string, options func(driver string) []string, idMap user.IdentityMapping, log *slog.Logger) (_ *cowdriver.Driver, err error) {
	_, statErr := os.Lstat(dir)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && errors.Is(statErr, fs.ErrNotExist) {
			_ = os.Remove(dir) // "cowshed init --loop", which may be the way out, wants an empty root
		}
	}()
	if err := checkDataset(dir, options("zfs")); err != nil {
		return nil, err
	}
	if name == autoDriver {
		found, err := graphdriver.New("", graphdriver.Options{Root: dir, IDMap: idMap, Logger: log})
		if err != nil {
			return nil, err
		}
		name = found.String()
		if err := found.Cleanup(); err != nil {
			return nil, err
		}
	}
	opened, err := graphdriver.New(name, graphdriver.Options{Root: dir, DriverOptions: options(name), IDMap: idMap, Logger: log})
	if err != nil {
		return nil, err
	}
	driver, ok := opened.(*cowdriver.Driver)
	if !ok {
		return nil, errors.Join(fmt.Errorf("storage driver %s: %w", opened, errdefs.ErrNotImplemented), opened.Cleanup())
	}
	return driver, nil
}

// checkDataset makes sure that dir, if it is on ZFS, is a dataset of its own: the volumes are the datasets directly
// below that one, and each service, as well as the command, takes all of those for its own. An option that names the
// dataset is believed.
func checkDataset(dir string, options []string) error {
	for _, option := range options {
		if _, name := splitOption(option); name == "fsname" {
			return nil
		}
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	f, err := detect.Probe(dir)
	if err != nil || f.Type != "zfs" || f.Mountpoint == dir {
		return err
	}
	return fmt.Errorf("%s needs a dataset of its own, and is on %s: make one with: zfs create -o mountpoint=%s %s-%s: %w",
		dir, f.Source, dir, f.Source, filepath.Base(dir), errdefs.ErrFailedPrecondition)
}
