package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/loopstore"
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

// store is an open store, as a command uses it.
type store struct {
	*layerstore.Store
	quiet bool
}

// mountsDir is the directory below the root where layers are mounted that are mounted nowhere else.
const mountsDir = "mnt"

// with opens the existing store, calls do, and closes the store.
func (a *app) with(ctx context.Context, do func(*store) error) (err error) {
	s, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Driver.Cleanup()) }()
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
	s, err := layerstore.OpenThere(ctx, a.storeOptions())
	return a.storeOf(s), err
}

// openOrMake opens the store, and makes missing parts of it.
func (a *app) openOrMake(ctx context.Context) (*store, error) {
	s, err := layerstore.Open(ctx, a.storeOptions())
	return a.storeOf(s), err
}

func (a *app) storeOptions() layerstore.Options {
	return layerstore.Options{Root: a.root, Driver: a.namedDriver(), DriverOptions: a.storageOpts, Log: a.log}
}

func (a *app) storeOf(s *layerstore.Store) *store { return &store{Store: s, quiet: a.quiet} }

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
func (a *app) initialised() (bool, error) { return layerstore.IsThere(a.root, a.namedDriver()) }

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
