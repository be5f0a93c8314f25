package oldgraph

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

// Inventory implements migrate.Source. The first call reads all files of images, for the digests of their tars. It lists
// an image for each that has a name, a container, or no other image above it. All others are layers alone.
func (s *Source) Inventory(ctx context.Context) (*migrate.Inventory, error) {
	inv, err := s.inventory(ctx)
	return inv, fault.Wrap("list the root", s.root.Path(), err)
}

func (s *Source) inventory(ctx context.Context) (*migrate.Inventory, error) {
	g, err := readGraph(s.root)
	if err != nil {
		return nil, err
	}
	names, err := readNames(s.root)
	if err != nil {
		return nil, err
	}
	l := &lister{
		source: s, graph: g, layers: map[*image]*migrate.Layer{}, images: map[*image]*migrate.Image{},
		inv: &migrate.Inventory{Program: Program, Driver: Driver},
	}
	if err := l.addLayers(ctx); err != nil {
		return nil, err
	}
	l.addNamed(names)
	l.addContainers()
	l.addHeads()
	l.finish()
	return l.inv, nil
}

type lister struct {
	source *Source
	graph  *graph
	layers map[*image]*migrate.Layer
	images map[*image]*migrate.Image // those of the Inventory
	inv    *migrate.Inventory
}

func (l *lister) problem(what, id, name string, err error) {
	l.inv.Problems = append(l.inv.Problems, migrate.Problem{What: what, ID: id, Name: name, Err: err})
}

// addLayers lists the layers that are whole, with their digests.
func (l *lister) addLayers(ctx context.Context) error {
	for _, i := range l.graph.parentsFirst() {
		err := i.err
		if err == nil && i.parent != nil && l.layers[i.parent] == nil {
			err = fault.New(errdefs.ErrDataLoss, "the image %q below it cannot be moved", i.parent.id)
		}
		var diffID digest.Digest
		if err == nil {
			diffID, err = l.source.diffID(ctx, i.id)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			l.problem("layer", i.id, "", notFound(err))
			continue
		}
		layer := &migrate.Layer{ID: i.id, Parent: i.record.Parent, Kind: migrate.ImageLayer, DiffID: diffID, ChainID: diffID, Size: i.size}
		if i.parent != nil {
			layer.ChainID = digest.FromString(l.layers[i.parent].ChainID.String() + " " + diffID.String())
		}
		l.layers[i] = layer
		l.inv.Layers = append(l.inv.Layers, *layer)
	}
	return nil
}

// image lists the image of that ID in the graph, once.
func (l *lister) image(id string) (*migrate.Image, error) {
	i := l.graph.images[id]
	if i == nil {
		return nil, fault.New(errdefs.ErrNotFound, "the root has no files of image %.100q", id)
	}
	if l.layers[i] == nil {
		return nil, fault.Wrap("image", id, cmp.Or(i.err, error(errdefs.ErrDataLoss)))
	}
	if made := l.images[i]; made != nil {
		return made, nil
	}
	var chain []*image
	for at := i; at != nil; at = at.parent {
		chain = append(chain, at)
	}
	slices.Reverse(chain)
	made := &migrate.Image{}
	var diffIDs []digest.Digest
	for _, at := range chain {
		made.Layers = append(made.Layers, at.id)
		diffIDs = append(diffIDs, l.layers[at].DiffID)
	}
	var err error
	if made.Config, err = makeConfig(chain, diffIDs); err != nil {
		return nil, err
	}
	made.ID = digest.FromBytes(made.Config)
	l.images[i] = made
	return made, nil
}

// addNamed lists the images that have names.
func (l *lister) addNamed(repositories map[string]map[string]string) {
	for _, repository := range slices.Sorted(maps.Keys(repositories)) {
		for _, tag := range slices.Sorted(maps.Keys(repositories[repository])) {
			id, name := repositories[repository][tag], repository+":"+tag
			image, err := l.image(id)
			if err != nil {
				l.problem("image", id, name, err)
				continue
			}
			ref, err := reference.ParseNormalizedNamed(repository)
			if err == nil {
				ref, err = reference.WithTag(ref, tag)
			}
			if err != nil {
				l.problem("image", id, name, fault.New(errdefs.ErrInvalidArgument, "the image comes without this name: %w", err))
				continue
			}
			image.Names = append(image.Names, ref.String())
		}
	}
}

func (l *lister) addContainers() {
	for _, id := range slices.Sorted(maps.Keys(l.graph.containers)) {
		c := l.graph.containers[id]
		name := strings.TrimPrefix(c.record.Name, "/")
		image, err := l.imageOf(c)
		if err != nil {
			l.problem("container", id, name, notFound(err))
			continue
		}
		l.inv.Layers = append(l.inv.Layers, migrate.Layer{ID: id, Parent: c.record.Image, Kind: migrate.ContainerLayer, Size: -1})
		l.inv.Containers = append(l.inv.Containers, migrate.Container{
			ID: id, Name: name, Image: image.ID, Layer: id, Running: c.record.State.Running, Dir: containersDir + "/" + id,
		})
	}
}

func (l *lister) imageOf(c *container) (*migrate.Image, error) {
	if c.err != nil {
		return nil, c.err
	}
	if l.graph.images[c.id] != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "an image has the same ID")
	}
	return l.image(c.record.Image)
}

// addHeads lists the images that have no other image above them.
func (l *lister) addHeads() {
	below := map[*image]bool{}
	for i := range l.layers {
		below[i.parent] = true
	}
	for _, i := range l.graph.parentsFirst() {
		if l.layers[i] == nil || below[i] {
			continue
		}
		if _, err := l.image(i.id); err != nil {
			l.problem("image", i.id, "", err)
		}
	}
}

// finish sorts. Two images of the graph may give one configuration, which is then listed with the names of both.
func (l *lister) finish() {
	byID := map[digest.Digest]*migrate.Image{}
	for _, i := range l.graph.parentsFirst() {
		made := l.images[i]
		if made == nil {
			continue
		}
		if same := byID[made.ID]; same != nil {
			same.Names = append(same.Names, made.Names...)
		} else {
			byID[made.ID] = made
		}
	}
	for _, made := range byID {
		slices.Sort(made.Names)
		made.Names = slices.Compact(made.Names)
		l.inv.Images = append(l.inv.Images, *made)
	}
	slices.SortFunc(l.inv.Images, func(a, b migrate.Image) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortStableFunc(l.inv.Problems, func(a, b migrate.Problem) int {
		return cmp.Or(strings.Compare(a.What, b.What), strings.Compare(a.ID, b.ID))
	})
}
