package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/tocontainerd"
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
	case toContainerd:
		return f.openContainerd(ctx, a, from)
	case "":
		return nil, usagef("say with --to where it comes to: %s, %s or %s", toStore, toPlugin, toContainerd)
	}
	return nil, usagef("--to %s: say %s, %s or %s", f.to, toStore, toPlugin, toContainerd)
}

// openStore opens the store in --root.
func (f *migrateFlags) openStore(ctx context.Context, a *app, from *oldRoot) (_ *newPlace, err error) {
	s, err := a.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.driver.Cleanup())
		}
	}()
	state, err := f.stateDir(s.root)
	if err != nil {
		return nil, err
	}
	target, err := tostore.New(tostore.Options{
		Driver: s.driver, Images: s.images, Home: s.home(), State: migrate.TargetState(state), Origin: from.String(), Trust: f.noVerify, Logger: a.log,
	})
	if err != nil {
		return nil, err
	}
	return &newPlace{Target: target, name: "store " + s.root, state: state, after: s.driver.Cleanup}, nil
}

func (f *migrateFlags) openPlugin(context.Context, *app, *oldRoot) (*newPlace, error) {
	return nil, failf(errdefs.ErrNotImplemented, "migrating to the plugin")
}

// openContainerd opens a namespace of containerd. Its state is in --root, which need not be a store.
func (f *migrateFlags) openContainerd(ctx context.Context, a *app, from *oldRoot) (*newPlace, error) {
	root, err := realPath(a.root)
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
	target, err := tocontainerd.New(ctx, tocontainerd.Options{
		Address: f.address, Namespace: f.namespace, Snapshotter: f.snapshotter, DockerRoot: engine, StateDir: migrate.TargetState(state), Logger: a.log,
	})
	if err != nil {
		return nil, err
	}
	return &newPlace{Target: target, name: fmt.Sprintf("containerd %s, namespace %s", f.address, f.namespace), state: state}, nil
}

// engineRoot is the root of the engine that is to have the containers, "" if there is none.
func (f *migrateFlags) engineRoot(from *oldRoot) (string, error) {
	switch {
	case f.dockerRoot != "":
		return realPath(f.dockerRoot)
	case from.program == ofDocker:
		return from.dir, nil
	}
	return "", nil
}
