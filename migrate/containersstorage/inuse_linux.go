package containersstorage

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/poll"
	"github.com/cowshed/cowshed/migrate/internal/dataset"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
)

// monitorsFor is how long InUse waits for conmon.
const monitorsFor = 3 * time.Second

// InUse implements migrate.Source. It looks for locks, for conmon, which runs as long as its container, and for mounts
// of layers. If there are none, the records of layers and containers stay locked until Close, as for a program that reads
// them: others wait before they change any.
func (s *Source) InUse(ctx context.Context) error {
	return fault.Wrap("look for users of the root", s.root.Path(), s.inUse(ctx))
}

func (s *Source) inUse(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.locks.Release())
		}
	}()
	// Before the locks: conmon ends with a program that needs them.
	if err := s.awaitMonitors(ctx); err != nil {
		return err
	}
	for _, lock := range []string{"storage.lock", s.driver + "-images/images.lock"} {
		if err := rootuse.Locked(s.root, lock); err != nil {
			return err
		}
	}
	for _, lock := range []string{s.driver + "-layers/layers.lock", s.driver + "-containers/containers.lock"} {
		if err := s.locks.Lock(s.root, lock); err != nil {
			return err
		}
	}
	return s.mounted(ctx)
}

// awaitMonitors waits a while for the processes of conmon to end: they live on for a moment when a container has ended.
func (s *Source) awaitMonitors(ctx context.Context) error {
	below := s.root.Path() + "/"
	pauses := poll.Pauses{First: 20 * time.Millisecond, Longest: 200 * time.Millisecond, AtMost: monitorsFor}
	return poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		err = rootuse.Process("conmon", func(argument string) bool { return strings.HasPrefix(argument, below) })
		return errors.Is(err, fault.ErrInUse), err
	})
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
