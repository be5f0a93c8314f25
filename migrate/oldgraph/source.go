package oldgraph

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Program and Driver are those of an Inventory of this package. Later versions of Docker cannot start the containers.
const (
	Program = migrate.ProgramOldDocker
	Driver  = migrate.DriverGraph
)

// Source is a root of Docker before 0.7. It implements migrate.Source.
type Source struct {
	root *rootdir.Dir

	mu      sync.Mutex
	diffIDs map[string]digest.Digest // of the tars that have been made, by ID of the layer
}

var _ migrate.Source = (*Source)(nil)

// Open opens the root at path, such as "/var/lib/docker". Returns errdefs.ErrNotFound if no directory of graph has the
// files of an image: Docker 0.7 and later keep records alone there.
func Open(_ context.Context, path string) (*Source, error) { return open(path) }

func open(path string) (*Source, error) {
	root, err := rootdir.Open(path)
	if err != nil {
		return nil, fault.Wrap("open the root", path, rootdir.NotFound(err))
	}
	s := &Source{root: root, diffIDs: map[string]digest.Digest{}}
	g, err := readGraph(root)
	if err == nil && len(g.images) == 0 {
		err = fault.New(errdefs.ErrNotFound, "no images with files, as Docker before 0.7 kept them")
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap("open the root", root.Path(), err), root.Close())
	}
	return s, nil
}

// Detect reports whether Open would open the root.
func Detect(path string) (bool, error) {
	s, err := open(path)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.Close()
}

// Close implements migrate.Source.
func (s *Source) Close() error { return s.root.Close() }

// Open implements migrate.Source. Returns errdefs.ErrNotFound if the root has no files of the layer.
func (s *Source) Open(_ context.Context, layer string) (*migrate.Content, error) {
	dir, err := s.openLayer(layer)
	if err != nil {
		return nil, fault.Wrap("open layer", layer, rootdir.NotFound(err))
	}
	return &migrate.Content{Dir: dir, Form: migrate.Aufs}, nil
}

func (s *Source) openLayer(id string) (*os.File, error) {
	if err := cowcommon.CheckID(id); err != nil {
		return nil, err
	}
	dir, err := s.root.OpenDir(graphDir + "/" + id + "/" + imageLayer)
	if errors.Is(err, fs.ErrNotExist) {
		dir, err = s.root.OpenDir(containersDir + "/" + id + "/" + containerRW)
	}
	return dir, err
}

// Parts implements migrate.Source. It takes the tar that the layer's diff ID is of, which it makes again. Returns
// errdefs.ErrNotFound for the layer of a container.
func (s *Source) Parts(ctx context.Context, layer string) (io.ReadCloser, error) {
	parts, err := s.parts(ctx, layer)
	if err != nil {
		return nil, fault.Wrap("open the tar's parts of layer", layer, rootdir.NotFound(err))
	}
	return parts, nil
}

func (s *Source) parts(ctx context.Context, layer string) (io.ReadCloser, error) {
	if err := cowcommon.CheckID(layer); err != nil {
		return nil, err
	}
	dir, err := s.root.OpenDir(graphDir + "/" + layer + "/" + imageLayer)
	if err != nil {
		return nil, err
	}
	return splitTar(ctx, dir), nil
}

// diffID is the digest of a layer's tar.
func (s *Source) diffID(ctx context.Context, layer string) (digest.Digest, error) {
	s.mu.Lock()
	known, ok := s.diffIDs[layer]
	s.mu.Unlock()
	if ok {
		return known, nil
	}
	dir, err := s.root.OpenDir(graphDir + "/" + layer + "/" + imageLayer)
	if err != nil {
		return "", rootdir.NotFound(err)
	}
	defer dir.Close()
	digester := digest.Canonical.Digester()
	if err := writeTar(ctx, digester.Hash(), dir); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.diffIDs[layer] = digester.Digest()
	return digester.Digest(), nil
}
