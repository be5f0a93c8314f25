package dockerroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// imageLayers are the layers of the layerdb, parents first.
type imageLayers struct {
	list    []*imageLayer
	byChain map[digest.Digest]*imageLayer
}

// readLayerDB reads the layers of the layerdb. Problems are those of entries that are no layers.
func (s *Source) readLayerDB(ctx context.Context) (*imageLayers, []migrate.Problem, error) {
	db := path.Join(s.image, "layerdb/sha256")
	names, err := s.list(db)
	if err != nil {
		return nil, nil, err
	}
	var problems []migrate.Problem
	found := &imageLayers{byChain: map[digest.Digest]*imageLayer{}}
	var list []*imageLayer
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		switch {
		case isID(name):
			l := readImageLayer(s.root, db, name)
			found.byChain[l.chain] = l
			list = append(list, l)
		case strings.HasSuffix(name, removingSuffix):
			err := fault.New(errdefs.ErrNotFound, "its removal was interrupted")
			problems = append(problems, migrate.Problem{What: whatLayer, ID: shown(name), Err: err})
		default:
			err := fault.New(errdefs.ErrInvalidArgument, "%s is no chain ID", shown(name))
			problems = append(problems, migrate.Problem{What: whatLayer, ID: shown(name), Err: err})
		}
	}
	for _, l := range list {
		found.addWithParents(l)
	}
	return found, problems, nil
}

// list lists a directory, which is empty if it does not exist.
func (s *Source) list(name string) ([]string, error) {
	names, err := s.root.List(name, maxEntries)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, rootdir.NotFound(err)
}

// eachID calls do for the files of a directory that have the ID of a container or an image as their names. Others are problems.
func (l *lister) eachID(ctx context.Context, dir, what string, do func(id string) error) error {
	names, err := l.list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !isID(name) {
			l.problem(what, shown(name), "", fault.New(errdefs.ErrInvalidArgument, "%s is no %s ID", shown(name), what))
		} else if err := do(name); err != nil {
			return err
		}
	}
	return nil
}

// addWithParents adds a layer to the list, after those below it.
func (all *imageLayers) addWithParents(l *imageLayer) {
	const visited = -1
	var line []*imageLayer // from l down
	at := l
	for at != nil && at.depth == 0 {
		at.depth = visited
		line = append(line, at)
		at = all.byChain[at.parent]
	}
	depth := 0
	switch {
	case at == nil:
	case at.depth == visited:
		// Chain IDs that are right have no cycles.
		at.err = errors.Join(at.err, fault.New(errdefs.ErrDataLoss, "it is its own parent"))
	default:
		depth = at.depth
	}
	for i := len(line) - 1; i >= 0; i-- {
		depth++
		line[i].depth = depth
		all.list = append(all.list, line[i])
	}
}

// check looks at the content of each layer, and at the layers below it. It completes the errors of the layers.
func (all *imageLayers) check(ctx context.Context, k keeper, owners owners) error {
	for _, l := range all.list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.err == nil {
			l.err = all.checkOne(l, k, owners)
		}
	}
	return nil
}

func (all *imageLayers) checkOne(l *imageLayer, k keeper, owners owners) error {
	if l.depth > maxDepth {
		return fault.New(errdefs.ErrResourceExhausted, "more than %d layers are below it", maxDepth-1)
	}
	if err := owners.check(l.id); err != nil {
		return err
	}
	if _, err := all.idOf(l.parent); err != nil {
		return err
	}
	return fault.Wrap("check content", l.id, k.check(l.id, l.depth-1))
}

// idOf is the ID of the layer with that chain ID, "" for none. Returns the layer's error if it is not whole.
func (all *imageLayers) idOf(chain digest.Digest) (string, error) {
	if chain == "" {
		return "", nil
	}
	l := all.byChain[chain]
	if l == nil {
		return "", fault.New(errdefs.ErrNotFound, "layer %s is not in the layerdb", chain)
	}
	if l.err != nil {
		return "", l.below()
	}
	return l.id, nil
}

// depthOf is the number of layers that a layer and those below it are.
func (all *imageLayers) depthOf(chain digest.Digest) int {
	if l := all.byChain[chain]; l != nil {
		return l.depth
	}
	return 0
}

// idsOf are the IDs of a layer and of those below, base first. The layer is whole.
func (all *imageLayers) idsOf(chain digest.Digest) []string {
	l := all.byChain[chain]
	if l == nil {
		return nil
	}
	ids := make([]string, l.depth)
	for ; l != nil; l = all.byChain[l.parent] {
		ids[l.depth-1] = l.id
	}
	return ids
}

// belowError says which layer is not whole, for the layers above it.
type belowError struct {
	chain digest.Digest
	err   error
}

func (e *belowError) Error() string { return fmt.Sprintf("layer %s below: %v", e.chain, e.err) }
func (e *belowError) Unwrap() error { return e.err }

// below is the error of a layer for those above it. It does not grow with their number.
func (l *imageLayer) below() error {
	if below, ok := errors.AsType[*belowError](l.err); ok {
		return below
	}
	return &belowError{l.chain, l.err}
}

// owners counts who claims the ID of a layer in the driver.
type owners map[string]int

// claim claims an ID. "" is none.
func (o owners) claim(id string) {
	if id != "" {
		o[id]++
	}
}

// check returns an error if an ID is claimed more than once: it is not known whose it is.
func (o owners) check(id string) error {
	if n := o[id]; n > 1 {
		return fault.New(errdefs.ErrDataLoss, "the layer %s of the driver belongs to %d layers of the layerdb", id, n)
	}
	return nil
}
