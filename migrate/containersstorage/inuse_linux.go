package containersstorage

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
)

// InUse implements migrate.Source. It looks for locks, for conmon, which runs as long as its container, and for mounts
// of layers.
func (s *Source) InUse(ctx context.Context) error {
	return fault.Wrap("look for users of the root", s.root.Path(), s.inUse(ctx))
}

func (s *Source) inUse(ctx context.Context) error {
	for _, lock := range []string{"storage.lock", "-layers/layers.lock", "-images/images.lock", "-containers/containers.lock"} {
		if strings.HasPrefix(lock, "-") {
			lock = s.driver + lock
		}
		if err := s.locked(lock); err != nil {
			return err
		}
	}
	below := s.root.Path() + "/"
	if err := rootuse.Process("conmon", func(argument string) bool { return strings.HasPrefix(argument, below) }); err != nil {
		return err
	}
	return s.mounted(ctx)
}

func (s *Source) locked(name string) error {
	file, err := s.root.OpenFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(rootuse.Locked(file), file.Close())
}

// mounted looks at each layer by itself, since the overlay driver leaves its directory mounted on itself. Layers that are
// given to the kernel by their links (overlay/l) are found by the place of the mount, which is in a layer's directory.
func (s *Source) mounted(ctx context.Context) error {
	layers, err := s.readLayers()
	if err != nil {
		return err
	}
	if s.driver == "zfs" {
		return s.mountedDataset(layers)
	}
	var names []string
	for i := range layers {
		id := layers[i].ID
		if cowcommon.CheckID(id) != nil {
			continue
		}
		if s.driver == "overlay" {
			names = append(names, "overlay/"+id)
		} else {
			names = append(names, s.dir(id))
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return rootuse.Mounts(s.root, names)
}

// mountedDataset looks for mounts of the layers' datasets.
func (s *Source) mountedDataset(layers []layerRecord) error {
	datasets := map[string]bool{}
	for i := range layers {
		datasets[s.dataset(layers[i].ID)] = true
	}
	uses, err := mounttable.UsesOfSource("zfs", func(source string) bool { return datasets[source] })
	if err != nil {
		return err
	}
	return mounttable.InUse("a layer's dataset", uses)
}
