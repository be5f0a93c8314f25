package oldgraph

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
)

// InUse implements migrate.Source. It looks for mounts of images and containers.
func (s *Source) InUse(context.Context) error {
	return fault.Wrap("look for users of the root", s.root.Path(), rootuse.Mounts(s.root, []string{graphDir, containersDir}))
}

// Remove implements migrate.Source. It removes the containers, the names, and then the images, so that Open finds the
// rest after a crash. Volumes stay, and so do containers of Docker since 0.7.
func (s *Source) Remove(ctx context.Context) error {
	return fault.Wrap("remove the root", s.root.Path(), s.remove(ctx))
}

func (s *Source) remove(ctx context.Context) error {
	if err := s.InUse(ctx); err != nil {
		return err
	}
	g, err := readGraph(s.root)
	if err != nil {
		return err
	}
	for id := range g.containers {
		if err := s.removeEntry(ctx, containersDir, id, containerRW); err != nil {
			return err
		}
	}
	top, err := s.root.OpenDir(".")
	if err != nil {
		return err
	}
	defer top.Close()
	if err := removeIn(ctx, top, "repositories", "repositories.json"); err != nil {
		return err
	}
	for id := range g.images {
		if err := s.removeEntry(ctx, graphDir, id, imageLayer); err != nil {
			return err
		}
	}
	return removeIn(ctx, top, graphDir)
}

// removeEntry removes an image or a container. Its files go last, since the entry is not found again without them.
func (s *Source) removeEntry(ctx context.Context, in, id, files string) error {
	names, err := s.root.List(in+"/"+id, maxEntries)
	if err != nil {
		return err
	}
	entry, err := s.root.OpenDir(in + "/" + id)
	if err != nil {
		return err
	}
	defer entry.Close()
	others := slices.DeleteFunc(names, func(name string) bool { return name == files })
	if err := removeIn(ctx, entry, others...); err != nil {
		return err
	}
	dir, err := s.root.OpenDir(in)
	if err != nil {
		return err
	}
	defer dir.Close()
	return removeIn(ctx, dir, id)
}

// removeIn removes the named files and directories in a directory. Missing ones are no error.
func removeIn(ctx context.Context, dir *os.File, names ...string) error {
	for _, name := range names {
		if err := treeat.RemoveTree(ctx, int(dir.Fd()), name); err != nil {
			return fault.Wrap("remove", filepath.Join(dir.Name(), name), err)
		}
	}
	return nil
}
