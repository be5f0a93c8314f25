package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
	"github.com/cowshed/cowshed/migrate/tocontainerd"
	"github.com/cowshed/cowshed/migrate/toplugin"
	"github.com/cowshed/cowshed/migrate/tostore"
)

// newPlace is an open target.
type newPlace struct {
	migrate.Target
	name  string // of the place, for people and in the journal
	state string // directory of the journal
	after func() error
}

func (p *newPlace) close() error {
	err := p.Target.Close()
	if p.after != nil {
		err = errors.Join(err, p.after())
	}
	return err
}

// openTarget opens the place that the flags name.
func (f *migrateFlags) openTarget(ctx context.Context, a *app, from *oldRoot) (*newPlace, error) {
	switch f.to {
	case toStore:
		return f.openStore(ctx, a, from)
	case toPlugin:
		return f.openPlugin(ctx, a, from)
	}
	return f.openContainerd(ctx, a, from)
}

// openStore opens the store in --root.
func (f *migrateFlags) openStore(ctx context.Context, a *app, from *oldRoot) (_ *newPlace, err error) {
	s, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Driver.Cleanup())
		}
	}()
	state, err := f.stateDir(s.Root)
	if err != nil {
		return nil, err
	}
	target, err := tostore.New(tostore.Options{
		Driver: s.Driver, Images: filepath.Join(s.Root, layerstore.ImagesDir), Home: s.Home(), State: migrate.TargetState(state),
		Origin: from.String(), Trust: f.noVerify, Logger: a.log,
	})
	if err != nil {
		return nil, err
	}
	return &newPlace{Target: target, name: "store " + s.Root, state: state, after: s.Driver.Cleanup}, nil
}

// openPlugin opens the plugin of a Docker Engine.
func (f *migrateFlags) openPlugin(ctx context.Context, a *app, from *oldRoot) (*newPlace, error) {
	root, err := f.engineRoot(from)
	if err != nil {
		return nil, err
	}
	if root == "" {
		return nil, usagef("say with --docker-root which engine to move it to")
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return nil, failf(errdefs.ErrNotFound, "there is no root of an engine at %s", root)
	}
	home := filepath.Join(root, f.pluginName)
	state, err := f.stateDir(home)
	if err != nil {
		return nil, err
	}
	driver := a.namedDriver()
	if driver == "" {
		if driver, err = driverFor(ctx, home, a.storageOpts); err != nil {
			return nil, err
		}
	}
	engine := root // whose databases tell whether it runs
	opts := toplugin.Options{
		Root: root, Plugin: f.pluginName, Home: filepath.Join(home, driver), State: migrate.TargetState(state), Trust: f.noVerify, Logger: a.log,
		Open:          func(ctx context.Context) (*cowdriver.Driver, error) { return a.openPluginDriver(ctx, driver, home) },
		DriverOptions: a.storageOpts,
		Idle:          func(ctx context.Context) error { return engineIdle(ctx, engine, from) },
	}
	if from.program == ofDocker {
		opts.SourceRoot, opts.SourceDriver = from.dir, from.driver
	}
	target, err := toplugin.New(opts)
	if err != nil {
		return nil, err
	}
	return &newPlace{Target: target, name: "plugin " + f.pluginName + " in " + root, state: state}, nil
}

// driverFor is the driver for which an option names the place of the volumes, or else a driver that can work at a path.
func driverFor(ctx context.Context, path string, options []string) (string, error) {
	for _, r := range cowdriver.Registered() {
		if slices.ContainsFunc(options, r.NamesPlace) {
			return r.Name, nil
		}
	}
	var errs []error
	for _, r := range cowdriver.Registered() {
		err := r.Usable(ctx, path)
		if err == nil {
			return r.Name, nil
		}
		errs = append(errs, err)
	}
	return "", failf(errdefs.ErrNotImplemented, "the plugin's layers have to be on %s, and %s is not: %w", cowdriver.Filesystems(), path, errors.Join(errs...))
}

// openPluginDriver opens the driver as the daemon does for an engine.
func (a *app) openPluginDriver(ctx context.Context, name, home string) (*cowdriver.Driver, error) {
	return cowdriver.OpenDriver(ctx, name, graphdriver.Options{Root: home, DriverOptions: a.storageOpts, Logger: a.log})
}

// engineIdle returns ErrFailedPrecondition while an engine works on a root.
func engineIdle(ctx context.Context, root string, from *oldRoot) (err error) {
	if root == from.dir && !from.lost {
		return from.InUse(ctx)
	}
	return dockerroot.Idle(ctx, root)
}

// openContainerd opens a namespace of containerd. Its state is in --root, which need not be a store.
func (f *migrateFlags) openContainerd(ctx context.Context, a *app, from *oldRoot) (*newPlace, error) {
	root, err := layerstore.RealPath(a.root)
	if err != nil {
		return nil, err
	}
	state, err := f.stateDir(root)
	if err != nil {
		return nil, err
	}
	engine, err := f.engineRoot(from)
	if err != nil {
		return nil, err
	}
	opts := tocontainerd.Options{
		Address: f.address, Namespace: f.namespace, Snapshotter: f.snapshotter, DockerRoot: engine, StateDir: migrate.TargetState(state), Logger: a.log,
	}
	if engine != "" {
		opts.Idle = func(ctx context.Context) error { return engineIdle(ctx, engine, from) }
	}
	target, err := tocontainerd.New(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &newPlace{Target: target, name: f.containerdName(engine), state: state}, nil
}

// containerdName names all that a migration to containerd must not change between two runs.
func (f *migrateFlags) containerdName(engine string) string {
	name := fmt.Sprintf("containerd %s, namespace %s, snapshotter %s", f.address, f.namespace, f.snapshotter)
	if engine != "" {
		name += ", containers of " + engine
	}
	return name
}

// engineRoot is the root of the engine that is to have the containers, "" if there is none.
func (f *migrateFlags) engineRoot(from *oldRoot) (string, error) {
	switch {
	case f.dockerRoot != "":
		return layerstore.RealPath(f.dockerRoot)
	case from.program == ofDocker: // others need a flag
		return from.dir, nil
	}
	return "", nil
}
