package dockerroot

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

// Kinds of things that have problems.
const (
	whatLayer     = "layer"
	whatImage     = "image"
	whatContainer = "container"
)

// lister makes an Inventory.
type lister struct {
	*Source
	keeper keeper
	layers *imageLayers
	mounts map[string]*mount // by container
	owners owners
	inv    *migrate.Inventory
}

// Inventory implements migrate.Source. It lists all layers of the layerdb, even those that no image has any more. An
// image layer among the problems has its chain ID as ID and its ID in the driver as Name.
func (s *Source) Inventory(ctx context.Context) (_ *migrate.Inventory, err error) {
	defer func() { err = fault.Wrap("list Docker's root", s.root.Path(), err) }()
	l := &lister{
		Source: s,
		owners: owners{},
		inv:    &migrate.Inventory{Program: "docker", Driver: s.driver},
	}
	// If it is no directory, no layer has content. One error says so.
	if err := isDir(s.root, s.driver); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	if l.keeper, err = s.keeper.refresh(ctx); err != nil {
		return nil, err
	}
	// IDs are claimed by all before the first is checked.
	steps := []func(context.Context) error{l.readLayers, l.readMounts, l.addLayers, l.addImages, l.addContainers}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return l.inv, nil
}

func (l *lister) problem(what, id, name string, err error) {
	l.inv.Problems = append(l.inv.Problems, migrate.Problem{What: what, ID: id, Name: name, Err: err})
}

func (l *lister) readLayers(ctx context.Context) (err error) {
	l.layers, l.inv.Problems, err = l.readLayerDB(ctx)
	if err != nil {
		return err
	}
	for _, layer := range l.layers.list {
		l.owners.claim(layer.id)
	}
	return nil
}

// addLayers adds the layers of images.
func (l *lister) addLayers(ctx context.Context) error {
	if err := l.layers.check(ctx, l.keeper, l.owners); err != nil {
		return err
	}
	l.keepChains(l.layers)
	for _, layer := range l.layers.list {
		if layer.err != nil {
			l.problem(whatLayer, string(layer.chain), layer.id, layer.err)
			continue
		}
		parent, err := l.layers.idOf(layer.parent)
		if err != nil {
			return err
		}
		l.inv.Layers = append(l.inv.Layers, migrate.Layer{
			ID:      layer.id,
			Parent:  parent,
			Kind:    migrate.ImageLayer,
			ChainID: layer.chain,
			DiffID:  layer.diff,
			Size:    layer.size,
		})
	}
	return nil
}

// Open implements migrate.Source. It opens any layer that the driver has, so that a migration can go on after a target has
// changed the configuration of the containers.
func (s *Source) Open(ctx context.Context, layer string) (_ *migrate.Content, err error) {
	defer func() { err = fault.Wrap("open layer", shown(layer), err) }()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := parseID([]byte(layer), isLayerID); err != nil {
		return nil, err
	}
	return s.keeper.open(ctx, layer)
}
