package containersstorage

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/dataset"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Inventory implements migrate.Source. It returns an error if one of the files of records cannot be read.
func (s *Source) Inventory(ctx context.Context) (*migrate.Inventory, error) {
	inv, err := s.inventory(ctx)
	return inv, fault.Wrap("list the root", s.root.Path(), err)
}

func (s *Source) inventory(ctx context.Context) (*migrate.Inventory, error) {
	layers, err := s.readLayers()
	if err != nil {
		return nil, err
	}
	images, err := s.readImages()
	if err != nil {
		return nil, err
	}
	containers, err := s.readContainers()
	if err != nil {
		return nil, err
	}

	l := &lister{
		source: s, layers: make(map[string]*layer, len(layers)), images: map[string]bool{}, used: map[*layer]bool{},
		inv: &migrate.Inventory{Program: Program, Driver: s.driver},
	}
	if s.driver == "zfs" {
		if l.datasets, err = dataset.Children(ctx, s.holder); err != nil {
			return nil, err
		}
	}
	for i := range layers {
		l.layers[layers[i].ID] = &layer{layerRecord: &layers[i]}
	}
	for i := range images {
		l.addImage(&images[i])
	}
	for i := range containers {
		l.addContainer(&containers[i])
	}
	l.addLayers(images)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.sort()
	return l.inv, nil
}

// maxLayers is the most layers that a container may have. containers/storage allows 500 on overlay.
const maxLayers = 1000

// lister makes an Inventory of records.
type lister struct {
	source *Source
	layers map[string]*layer
	images map[string]bool // IDs of listed images
	// datasets are those of the layers on ZFS, by ID of the layer.
	datasets map[string]dataset.Dataset
	used     map[*layer]bool
	inv      *migrate.Inventory
}

// layer is a record of a layer, with all that is known about it.
type layer struct {
	*layerRecord
	looked bool   // the fields below are set
	parent *layer // nil for a base
	depth  int    // number of layers below
	err    error  // it cannot be moved
	// chain is the chain ID, "" if the digest of a tar is not known. wrong is then the reason.
	chain digest.Digest
	wrong error
	link  string // of overlay
	kind  migrate.Kind
}

func (l *lister) problem(what, id, name string, err error) {
	l.inv.Problems = append(l.inv.Problems, migrate.Problem{What: what, ID: id, Name: name, Err: err})
}

// whole looks at a layer and those below, and returns the layer. Returns errdefs.ErrNotFound if there is no record of
// the layer, and the error of the first layer that cannot be moved.
func (l *lister) whole(id string) (*layer, error) {
	var path []*layer
	onPath := map[*layer]bool{}
	top := l.layers[id]
	for at := top; at != nil && !at.looked; at = l.layers[at.Parent] {
		if onPath[at] {
			at.looked, at.err = true, fault.New(errdefs.ErrDataLoss, "layer %q: it is below itself", at.ID)
			break
		}
		onPath[at] = true
		path = append(path, at)
		if at.Parent == "" {
			break
		}
	}
	for _, at := range slices.Backward(path) { // from the base
		if !at.looked {
			l.look(at)
		}
	}
	if top == nil {
		return nil, missing(id)
	}
	return top, top.err
}

func missing(id string) error {
	return fault.New(errdefs.ErrNotFound, "layer %q: the root has no record of it; it may be in another store (additionalimagestores)", id)
}

// look looks at a layer whose parent has been looked at.
func (l *lister) look(at *layer) {
	at.looked = true
	if at.Parent != "" {
		if at.parent = l.layers[at.Parent]; at.parent == nil {
			at.err = missing(at.Parent)
			return
		}
		if at.err = at.parent.err; at.err != nil {
			return
		}
		if at.depth = at.parent.depth + 1; at.depth >= maxLayers {
			at.err = fault.New(errdefs.ErrResourceExhausted, "layer %q is above more than %d others", at.ID, maxLayers-1)
			return
		}
	}
	if err := l.check(at); err != nil {
		at.err = fault.Wrap("layer", at.ID, err)
		return
	}
	switch {
	case at.parent != nil && at.parent.wrong != nil:
		at.wrong = at.parent.wrong
	case at.DiffID == "":
		at.wrong = fault.New(errdefs.ErrFailedPrecondition, "layer %q: the digest of its tar is not recorded", at.ID)
	case at.DiffID.Validate() != nil:
		at.wrong = fault.New(errdefs.ErrDataLoss, "layer %q: digest %.100q is malformed", at.ID, at.DiffID)
	case at.parent == nil:
		at.chain = at.DiffID
	default:
		at.chain = identity.ChainID([]digest.Digest{at.parent.chain, at.DiffID})
	}
}

// check looks at the record and the files of a layer.
func (l *lister) check(at *layer) error {
	if err := l.source.checkID(at.ID); err != nil {
		return err
	}
	if at.isIncomplete() {
		return fault.New(errdefs.ErrDataLoss, "it is marked as incomplete: its program was interrupted")
	}
	if isMapped(at.UIDMap, at.GIDMap) {
		return fault.New(errdefs.ErrNotImplemented, "the ids of its files are mapped for a user namespace")
	}
	switch l.source.driver {
	case "overlay":
		return l.checkOverlay(at)
	case "zfs":
		if _, ok := l.datasets[at.ID]; !ok {
			return fault.New(errdefs.ErrNotFound, "dataset %s does not exist", l.source.dataset(at.ID))
		}
		return nil
	}
	dir, err := l.source.root.OpenDir(l.source.dir(at.ID))
	if err != nil {
		return rootdir.NotFound(err)
	}
	return dir.Close()
}

// use lists a layer and those below.
func (l *lister) use(at *layer, kind migrate.Kind) {
	for ; at != nil && !l.used[at]; at, kind = at.parent, migrate.ImageLayer {
		at.kind = kind
		l.used[at] = true
	}
}

// addLayers lists the layers in use, and has a Problem for each other layer. images have copies of layers with
// other ids, for which containers/storage needs no entry of its own.
func (l *lister) addLayers(images []imageRecord) {
	copies := map[string]bool{}
	for i := range images {
		for _, id := range images[i].MappedTopLayers {
			copies[id] = true
		}
	}
	for id, at := range l.layers {
		if l.used[at] {
			l.inv.Layers = append(l.inv.Layers, at.layer())
			continue
		}
		if copies[id] {
			continue
		}
		_, err := l.whole(id)
		if err == nil {
			err = fault.New(errdefs.ErrNotFound, "no image or container that can be moved uses it")
		}
		l.problem("layer", id, strings.Join(at.Names, ", "), err)
	}
}

func (at *layer) layer() migrate.Layer {
	made := migrate.Layer{ID: at.ID, Parent: at.Parent, Kind: at.kind, Size: -1}
	if at.kind == migrate.ImageLayer {
		made.ChainID, made.DiffID = at.chain, at.DiffID
		made.Size = max(at.DiffSize, 0)
	}
	return made
}

func (l *lister) sort() {
	slices.SortFunc(l.inv.Layers, func(a, b migrate.Layer) int {
		return cmp.Or(cmp.Compare(l.layers[a.ID].depth, l.layers[b.ID].depth), strings.Compare(a.ID, b.ID))
	})
	slices.SortFunc(l.inv.Images, func(a, b migrate.Image) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(l.inv.Containers, func(a, b migrate.Container) int { return strings.Compare(a.ID, b.ID) })
	slices.SortStableFunc(l.inv.Problems, func(a, b migrate.Problem) int {
		return cmp.Or(strings.Compare(a.What, b.What), strings.Compare(a.ID, b.ID))
	})
}
