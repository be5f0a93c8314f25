package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/loopstore"
	"github.com/cowshed/cowshed/live"
)

// app has the values of the global flags.
type app struct {
	root        string
	driverName  string
	storageOpts []string
	logLevel    string
	quiet       bool
	log         *slog.Logger

	configFile string // of the daemon, for commands of addContainers
}

// store is an open store.
type store struct {
	root   string // absolute
	driver *cowdriver.Driver
	images *image.Store
	live   *live.Layers
	log    *slog.Logger
	quiet  bool

	readOnly bool // nothing can be changed
	// containers has the volumes of the references that the command names, by these without their snapshots. It is nil for the
	// command's own store, and not for that of the daemon's volumes.
	containers map[string]string
}

// home is the driver's own directory.
func (s *store) home() string { return filepath.Join(s.root, s.driver.String()) }

// Names below the root, next to the drivers' directories.
const (
	imagesDir = "images"
	mountsDir = "mnt" // where layers are mounted that are mounted nowhere else
)

// with opens the existing store, calls do, and closes the store.
func (a *app) with(ctx context.Context, do func(*store) error) (err error) {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.driver.Cleanup()) }()
	return do(s)
}

// open opens the store that is there, for reading alone where nothing can be written. An embedded store is mounted first
// if need be.
func (a *app) open(ctx context.Context) (*store, error) {
	if err := a.checkDriver(ctx); err != nil {
		return nil, err
	}
	if err := a.mountEmbedded(ctx); err != nil {
		return nil, err
	}
	initialised, err := a.initialised()
	if err != nil {
		return nil, err
	}
	if !initialised {
		return nil, failf(errdefs.ErrNotFound, "there is no store in %s; make one with: cowshed init", a.root)
	}
	return a.openThere(ctx)
}

// openThere opens the store that is there, for reading alone where nothing can be written.
func (a *app) openThere(ctx context.Context) (*store, error) {
	s, err := a.openOrMake(ctx)
	var cannotWrite *detect.ReadOnlyError
	if !errors.As(err, &cannotWrite) {
		return s, err
	}
	a.log.Info("opened for reading alone", "reason", cannotWrite)
	return a.openDriver(ctx, true)
}

// openOrMake opens the store, and makes missing parts of it.
func (a *app) openOrMake(ctx context.Context) (*store, error) { return a.openDriver(ctx, false) }

func (a *app) openDriver(ctx context.Context, readOnly bool) (*store, error) {
	root, err := realPath(a.root)
	if err != nil {
		return nil, err
	}
	opened, err := graphdriver.Open(ctx, a.namedDriver(), graphdriver.Options{
		Root: root, DriverOptions: a.storageOpts, ReadOnly: readOnly, Logger: a.log,
	})
	if err != nil {
		return nil, err
	}
	driver, ok := opened.(*cowdriver.Driver)
	if !ok {
		return nil, errors.Join(failf(errdefs.ErrNotImplemented, "storage driver %s", opened), opened.Cleanup())
	}
	moments := live.New(driver.Backend(), live.Dir(root, driver.String(), driver.Backend()), a.log)
	images := image.NewStore(filepath.Join(root, imagesDir), driver, a.log).WithBase(moments.Base)
	if !readOnly { // before anybody looks for a layer
		if err := moments.Recover(ctx); err != nil {
			a.log.Warn("interrupted steps are ended later", "error", err)
		}
	}
	return &store{root: root, driver: driver, images: images, live: moments, log: a.log, quiet: a.quiet, readOnly: readOnly}, nil
}

// namedDriver is the driver that the command line names, "" if it is to be found.
func (a *app) namedDriver() string {
	if a.driverName == autoDriver {
		return ""
	}
	return a.driverName
}

// checkDriver returns the error of New for the name of a driver that does not exist: with it there is no store to
// look for, or to make.
func (a *app) checkDriver(ctx context.Context) error {
	name := a.namedDriver()
	if name == "" || graphdriver.IsRegistered(name) {
		return nil
	}
	_, err := graphdriver.Open(ctx, name, graphdriver.Options{Root: a.root, Logger: a.log})
	return err
}

// realPath is path as the kernel lists it among the mounts, if it is there.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, nil
	}
	return path, nil
}

// mountEmbedded mounts the embedded store, if there is one and it is not mounted, as after a reboot.
func (a *app) mountEmbedded(ctx context.Context) error {
	embedded, err := loopstore.At(a.root)
	if err != nil {
		return err
	}
	// A file next to the root that is not ours is of no concern here.
	state, err := embedded.State()
	if err != nil || state != loopstore.Detached {
		return nil //nolint:nilerr // said above
	}
	mounted, err := embedded.Mount(ctx)
	if mounted {
		a.log.Info("mounted the embedded store", "image", embedded.Image, "root", embedded.Root)
	}
	return err
}

// initialised reports whether a driver has been at work in the root.
func (a *app) initialised() (bool, error) {
	names := graphdriver.Drivers()
	if name := a.namedDriver(); name != "" {
		names = []string{name}
	}
	for _, name := range names {
		_, err := os.Stat(filepath.Join(a.root, name))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// sourceDateEpoch is the time that SOURCE_DATE_EPOCH says, nil if it is not set.
func sourceDateEpoch() (*time.Time, error) {
	value := os.Getenv("SOURCE_DATE_EPOCH")
	if value == "" {
		return nil, nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil || seconds < 0 {
		return nil, usagef("SOURCE_DATE_EPOCH is %q: it has to be a number of seconds since 1970", value)
	}
	epoch := time.Unix(seconds, 0).UTC()
	return &epoch, nil
}
