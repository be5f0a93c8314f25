package containersstorage

import (
	"context"
	"strings"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate/internal/dataset"
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
		if err := rootuse.Locked(s.root, lock); err != nil {
			return err
		}
	}
	below := s.root.Path() + "/"
	if err := rootuse.Process("conmon", func(argument string) bool { return strings.HasPrefix(argument, below) }); err != nil {
		return err
	}
	return s.mounted(ctx)
}

// mounted looks at each layer by itself, since the overlay driver leaves its directory mounted on itself. Layers that are
// given to the kernel by their links (overlay/l) are found by the place of the mount, which is in a layer's directory.
func (s *Source) mounted(ctx context.Context) error {
	layers, err := s.readLayers()
	if err != nil {
		return err
	}
	if s.driver == "zfs" {
		ids := s.layerIDs(layers)
		return dataset.InUse(s.holder, func(id string) bool { return ids[id] })
	}
	var names []string
	for i := range layers {
		id := layers[i].ID
		if cowcommon.CheckID(id) != nil {
			continue
		}
		name := s.dir(id)
		if s.driver == "overlay" {
			name = "overlay/" + id
		}
		if is, err := s.root.Exists(name); is && err == nil { // a symbolic link is a problem of that layer alone
			names = append(names, name)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return rootuse.Mounts(s.root, names)
}
