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
// of layers. If there are none, the records of layers and containers stay locked until Close, as for a program that reads
// them: others wait before they change any.
func (s *Source) InUse(ctx context.Context) error {
	return fault.Wrap("look for users of the root", s.root.Path(), s.inUse(ctx))
}

func (s *Source) inUse(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.held.release())
		}
	}()
	for _, lock := range []string{"storage.lock", s.driver + "-images/images.lock"} {
		if err := s.checkLock(lock, false); err != nil {
			return err
		}
	}
	for _, lock := range []string{s.driver + "-layers/layers.lock", s.driver + "-containers/containers.lock"} {
		if err := s.checkLock(lock, true); err != nil {
			return err
		}
	}
	below := s.root.Path() + "/"
	if err := rootuse.Process("conmon", func(argument string) bool { return strings.HasPrefix(argument, below) }); err != nil {
		return err
	}
	return s.mounted(ctx)
}

// checkLock returns fault.ErrInUse if a process has a file locked. It locks the file itself if it is to be held.
func (s *Source) checkLock(name string, hold bool) error {
	if file := s.held.of(name); file != nil {
		return rootuse.Locked(file) // by others
	}
	file, err := s.root.OpenFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if hold {
		err = rootuse.Lock(file)
	}
	if err == nil {
		err = rootuse.Locked(file)
	}
	if err != nil || !hold {
		return errors.Join(err, file.Close())
	}
	return s.held.hold(name, file)
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
