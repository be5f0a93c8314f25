package oldgraph

import (
	"context"
	"errors"
	"io/fs"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// IntoOptions are those of Into.
type IntoOptions struct {
	// SetupInit prepares the tree at a path for a container, as Docker made /etc/hosts and the like. nil: nothing is to be
	// prepared.
	SetupInit func(path string) error
	// Changes is where the driver keeps the changes of a layer that it has made, as files in the form of aufs. nil: the
	// driver keeps whole trees.
	Changes func(id string) string

	after func(step string) error // for tests: an error is as a crash after that step
}

// Into moves the root at path into a driver, and does nothing if there is no directory graph in it. Layers of images get
// the IDs of the images. A container gets two layers: ID-init, a child of the image, which SetupInit prepares, and its
// child ID. The file repositories gets the driver's name as an ending. Records stay where they are, for the engine.
//
// How the files of a layer come into the driver:
//
//   - A driver that keeps whole trees gets a layer by Create, and the changes are merged into it, sharing data by
//     reflink if both are on one filesystem that can. The old files are removed once the layer is durable. If the
//     directory of a new base layer is an ordinary one on the same filesystem, the old directory is renamed to it.
//   - A driver with Changes gets the directory itself by a rename. If that fails because the directory is mounted or on
//     another filesystem, a symbolic link in its place leads to it, and the next call tries again.
//
// Files that are mounted stay, after a copy of them has come into the driver. No container may be running.
//
// Into may be repeated after an error or a crash, and goes on where it stopped. Until all is done, the driver has one more
// layer, "cowshed-moving". It tells how far each image and container has come.
//
// The error has all images and containers that cannot be moved, and the rest is moved. Returns errdefs.ErrAlreadyExists for
// a layer that the driver has from elsewhere. Returns errdefs.ErrDataLoss or errdefs.ErrNotFound for damage, and
// fault.ErrInUse if another call works on the root.
func Into(ctx context.Context, driver graphdriver.Driver, path string, o IntoOptions) error {
	return fault.WrapWith("move the layers of", path, "to "+driver.String(), into(ctx, driver, path, o))
}

func into(ctx context.Context, driver graphdriver.Driver, path string, o IntoOptions) (err error) {
	root, err := rootdir.Open(path)
	if err != nil {
		return notFound(err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	dir, err := root.OpenDir(graphDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close() // which unlocks
	if err := lock(dir); err != nil {
		return err
	}

	states, err := openStates(driver)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, states.close()) }()
	m := &mover{ctx: ctx, driver: driver, root: root, states: states, options: o}
	g := &graph{root: root, isKnown: driver.Exists}
	if err := g.read(m.isLeft(g)); err != nil {
		return err
	}
	return m.moveAll(g)
}

// moveAll moves all that can be moved, images before those above them.
func (m *mover) moveAll(g *graph) error {
	errs := []error{m.renameNames()}
	failed := map[*image]bool{}
	for _, i := range g.parentsFirst() {
		if m.ctx.Err() != nil {
			break
		}
		err := i.err
		if err == nil && failed[i.parent] {
			err = fault.New(errdefs.ErrFailedPrecondition, "the image below it could not be moved")
		}
		if err == nil {
			err = m.moveImage(i)
		}
		failed[i] = err != nil
		errs = append(errs, fault.Wrap("move image", i.id, err))
	}
	for _, c := range g.containers {
		if m.ctx.Err() != nil {
			break
		}
		err := c.err
		if err == nil && failed[g.images[c.record.Image]] { // the driver may have a part of it
			err = fault.New(errdefs.ErrFailedPrecondition, "its image could not be moved")
		}
		if err == nil {
			err = m.moveContainer(c)
		}
		errs = append(errs, fault.Wrap("move container", c.id, err))
	}
	return errors.Join(append(errs, m.ctx.Err())...)
}

// mover moves a root.
type mover struct {
	ctx     context.Context
	driver  graphdriver.Driver
	root    *rootdir.Dir
	states  *states
	options IntoOptions
}

// isLeft reports whether an entry has something that is not done.
func (m *mover) isLeft(g *graph) func(dir, id, files string) (bool, error) {
	return func(dir, id, files string) (bool, error) {
		there, err := g.has(dir, id, files)
		if there || err != nil || !g.isDir(dir+"/"+id) {
			return there, err
		}
		s, err := m.states.of(dir, id)
		return s != untouched, err
	}
}

func (m *mover) passed(step string) error {
	if m.options.after == nil {
		return nil
	}
	return m.options.after(step)
}

// entry is an image or a container.
type entry struct {
	in, id string   // its directory is ID in that one
	files  string   // that with its changes, in its directory
	layers []string // of the driver, parents first; the last one gets the changes
	parent string   // of the first one, "" if it is a base
	create func() error
}

func (e *entry) dir() string { return e.in + "/" + e.id }

func (m *mover) moveImage(i *image) error {
	parent := i.record.Parent
	return m.move(entry{
		in: graphDir, id: i.id, files: imageLayer, layers: []string{i.id}, parent: parent,
		create: func() error { return m.driver.Create(i.id, parent, nil) },
	})
}

func (m *mover) moveContainer(c *container) error {
	init := c.id + "-init"
	return m.move(entry{
		in: containersDir, id: c.id, files: containerRW, layers: []string{init, c.id}, parent: c.record.Image,
		create: func() error {
			if err := m.driver.Create(init, c.record.Image, nil); err != nil {
				return err
			}
			if err := m.setUp(init); err != nil {
				return err
			}
			return m.driver.CreateReadWrite(c.id, init, nil)
		},
	})
}

// setUp has the caller prepare the layer between an image and a container.
func (m *mover) setUp(init string) error {
	if m.options.SetupInit == nil {
		return nil
	}
	path, err := m.driver.Get(init, "")
	if err != nil {
		return err
	}
	err = fault.Wrap("set up layer", init, m.options.SetupInit(path))
	return errors.Join(err, m.driver.Put(init))
}

// move takes an entry from its state to the end. Each step may be the last one before a crash.
func (m *mover) move(e entry) (err error) {
	dir, err := m.root.OpenDir(e.dir())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	s, err := m.states.of(e.in, e.id)
	if err != nil {
		return err
	}
	files, err := m.root.OpenDir(e.dir() + "/" + e.files)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if files != nil {
		defer files.Close()
	}

	switch {
	case s == filled:
	case files == nil: // a rename, which is the last step, took them into the layer
		if !m.driver.Exists(e.layers[len(e.layers)-1]) {
			return fault.New(errdefs.ErrDataLoss, "neither the root nor the driver has its files")
		}
		if err := m.setState(e, filled); err != nil {
			return err
		}
	default:
		if err := m.make(e, s); err != nil {
			return err
		}
		isLinked, err := m.fill(e, dir, files)
		if err != nil {
			return err
		}
		if isLinked {
			return m.setState(e, linked)
		}
		if err := m.setState(e, filled); err != nil {
			return err
		}
	}
	return m.discard(e, dir)
}

// make creates the layers of an entry, anew if an earlier call has left them incomplete.
func (m *mover) make(e entry, s state) error {
	switch s {
	case linked:
		return nil
	case begun:
		for i := range e.layers {
			if err := m.driver.Remove(e.layers[len(e.layers)-1-i]); err != nil {
				return err
			}
		}
	default:
		if e.parent != "" && !m.driver.Exists(e.parent) {
			return fault.New(errdefs.ErrNotFound, "the driver has no layer %q", e.parent)
		}
		for _, layer := range e.layers {
			if m.driver.Exists(layer) {
				return fault.New(errdefs.ErrAlreadyExists, "the driver has a layer %q from elsewhere", layer)
			}
		}
		if err := m.setState(e, begun); err != nil {
			return err
		}
	}
	if err := e.create(); err != nil {
		return err
	}
	return m.passed("created")
}

// setState records how far an entry has come.
func (m *mover) setState(e entry, s state) error {
	if err := m.states.set(e.in, e.id, s); err != nil {
		return err
	}
	return m.passed(string(s))
}
