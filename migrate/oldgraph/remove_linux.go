package oldgraph

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/cowshed/cowshed/cowcommon/fault"
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
	root, err := os.OpenRoot(s.root.Path())
	if err != nil {
		return err
	}
	defer root.Close()
	for id := range g.containers {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := removeEntry(root, containersDir+"/"+id, containerRW); err != nil {
			return err
		}
	}
	for _, name := range []string{"repositories", "repositories.json"} {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for id := range g.images {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := removeEntry(root, graphDir+"/"+id, imageLayer); err != nil {
			return err
		}
	}
	return root.RemoveAll(graphDir)
}

// removeEntry removes a directory, and the directory last of its content, without which the entry is not found again.
func removeEntry(root *os.Root, dir, last string) error {
	entry, err := root.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer entry.Close()
	names, err := fs.ReadDir(entry.FS(), ".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if name.Name() == last {
			continue
		}
		if err := entry.RemoveAll(name.Name()); err != nil {
			return err
		}
	}
	return root.RemoveAll(dir)
}
