package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/containersstorage"
	"github.com/cowshed/cowshed/migrate/dockerroot"
	"github.com/cowshed/cowshed/migrate/oldgraph"
)

// Programs of old roots, for people.
const (
	ofDocker    = "Docker"
	ofPodman    = "containers/storage (Podman, CRI-O, Buildah)"
	ofOldDocker = "Docker before 0.7"
)

// oldDriver is the name by which --driver chooses the graph of a Docker before 0.7.
const oldDriver = "graph"

// graphState names a program and a driver that have layers in a directory.
type graphState struct{ program, driver string }

func (s graphState) String() string {
	if s.program == ofOldDocker {
		return s.program
	}
	return s.program + " with driver " + s.driver
}

// oldRoot is an open old root.
type oldRoot struct {
	migrate.Source
	graphState
	dir  string
	lost bool // it cannot be read
}

func (r *oldRoot) String() string {
	if r.lost {
		return r.dir
	}
	return r.dir + " (" + r.graphState.String() + ")"
}

// findGraphs looks at the files of a directory for the programs that have used it as their root.
func findGraphs(dir string) (found []graphState, err error) {
	add := func(program string, drivers []string, err error) error {
		for _, driver := range drivers {
			found = append(found, graphState{program, driver})
		}
		return err
	}
	drivers, err := dockerroot.Detect(dir)
	if err := add(ofDocker, drivers, err); err != nil {
		return nil, err
	}
	drivers, err = containersstorage.Detect(dir)
	if err := add(ofPodman, drivers, err); err != nil {
		return nil, err
	}
	if is, err := oldgraph.Detect(dir); err != nil {
		return nil, err
	} else if is {
		found = append(found, graphState{ofOldDocker, oldDriver})
	}
	return found, nil
}

// open opens the old root that the flags name.
func (f *migrateFlags) open(ctx context.Context, a *app) (*oldRoot, error) {
	if f.from == "" {
		return nil, usagef("say with --from which root is to be moved%s", foundRoots())
	}
	dir, err := layerstore.RealPath(f.from)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil, failf(errdefs.ErrNotFound, "there is no directory %s%s", f.from, foundRoots())
	} else if err != nil {
		return nil, err
	}
	found, err := findGraphs(dir)
	if err != nil {
		return nil, err
	}
	state, err := f.choose(dir, found)
	if err != nil {
		return nil, err
	}
	root := &oldRoot{graphState: state, dir: dir}
	switch state.program {
	case ofDocker:
		root.Source, err = dockerroot.Open(ctx, dockerroot.Options{Dir: dir, Driver: state.driver, Dataset: f.dataset, Logger: a.log})
	case ofPodman:
		root.Source, err = containersstorage.Open(ctx, containersstorage.Options{Dir: dir, Driver: state.driver, Dataset: f.dataset})
	default:
		root.Source, err = oldgraph.Open(ctx, dir)
	}
	if err != nil {
		return nil, err
	}
	return root, nil
}

// recall reads the journal of the migration, nil if there is none, and completes the flags by it.
func (f *migrateFlags) recall(a *app) (*migrate.Ends, error) {
	beside := a.root
	if f.to == toPlugin {
		beside = cmp.Or(f.dockerRoot, f.from)
	}
	if beside == "" && f.state == "" {
		return nil, nil
	}
	beside, err := layerstore.RealPath(beside)
	if err != nil {
		return nil, err
	}
	if f.to == toPlugin {
		beside = filepath.Join(beside, f.pluginName)
	}
	state, err := f.stateDir(beside)
	if err != nil {
		return nil, err
	}
	ends, err := migrate.ReadEnds(state)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if f.from == "" {
		f.from = ends.Source
	}
	from, err := layerstore.RealPath(f.from)
	if err != nil || from != ends.Source {
		return nil, err // of another root: the migration refuses it
	}
	if f.driver == "" {
		f.driver = ends.Driver
	}
	return ends, nil
}

// lostRoot is the root of a migration that cannot be read, because of err.
func lostRoot(ends *migrate.Ends, err error) *oldRoot {
	state := graphState{ofDocker, ends.Driver}
	switch ends.Program {
	case containersstorage.Program:
		state.program = ofPodman
	case oldgraph.Program:
		state.program = ofOldDocker
	}
	return &oldRoot{Source: migrate.Removed(err), graphState: state, dir: ends.Source, lost: true}
}

// choose chooses one of the states of a directory. A name of the plugin is no driver to move from, unless --driver says
// so: it is there after a migration to it.
func (f *migrateFlags) choose(dir string, found []graphState) (graphState, error) {
	var chosen []graphState
	var drivers []string
	for _, state := range found {
		drivers = append(drivers, state.driver)
		if f.driver == state.driver || f.driver == "" && (f.to != toPlugin || state.driver != f.pluginName) {
			chosen = append(chosen, state)
		}
	}
	switch {
	case len(chosen) == 1:
		return chosen[0], nil
	case f.driver != "" && len(found) == 0:
		// Its state may be empty, after a finish that was interrupted.
		if _, err := os.Stat(filepath.Join(dir, "image", f.driver, "layerdb")); err == nil && filepath.IsLocal(f.driver) {
			return graphState{ofDocker, f.driver}, nil
		}
		return graphState{}, failf(errdefs.ErrNotFound, "%s%s", noRoot(dir), foundRoots())
	case len(found) == 0:
		return graphState{}, failf(errdefs.ErrNotFound, "%s%s", noRoot(dir), foundRoots())
	case len(chosen) == 0 && f.driver != "":
		return graphState{}, failf(errdefs.ErrNotFound, "%s has no layers of driver %s, but of %s", dir, f.driver, strings.Join(drivers, ", "))
	case len(chosen) == 0:
		return graphState{}, failf(errdefs.ErrNotFound, "%s has layers of %s alone, which is the plugin that they would be moved to", dir, f.pluginName)
	}
	slices.Sort(drivers)
	return graphState{}, usageError{failf(errdefs.ErrInvalidArgument, "%s has layers of several drivers: choose one with --driver %s", dir, strings.Join(drivers, ", or --driver "))}
}

// noRoot says why a directory is no root, and which one near it is.
func noRoot(dir string) string {
	for _, near := range []string{filepath.Dir(dir), filepath.Join(dir, "storage"), filepath.Join(dir, "docker")} {
		if found, err := findGraphs(near); err == nil && len(found) > 0 {
			return fmt.Sprintf("%s is no root, but %s is one, of %s", dir, near, found[0])
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "containerd")); err == nil {
		return dir + " has no layers of a graph driver: the images of Docker 29 and later are containerd's"
	}
	return dir + " has no layers of Docker (image/DRIVER/layerdb), nor of Podman (DRIVER-layers)"
}

// usualRoots are the places where programs have their roots.
var usualRoots = []string{"/var/lib/docker", "/var/lib/containers/storage"}

// foundRoots lists the roots in the usual places, as the end of a message.
func foundRoots() string {
	var list []string
	for _, dir := range usualRoots {
		found, err := findGraphs(dir)
		if err != nil {
			continue
		}
		for _, state := range found {
			list = append(list, fmt.Sprintf("%s (%s)", dir, state))
		}
	}
	if len(list) == 0 {
		return ""
	}
	return "; there is " + strings.Join(list, ", and ")
}
