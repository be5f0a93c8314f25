package graphdriver

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// InitFunc opens a driver whose files are kept under root, which it makes if need be. options are "key=value" strings.
// A driver refuses an option that it does not know. idMap gives the host ids that stand for the ids in the layers.
//
// If the driver cannot work there, [IsDriverNotSupported] is true for the error, and nothing was made.
type InitFunc func(root string, options []string, idMap user.IdentityMapping) (Driver, error)

// OpenFunc is an InitFunc that is also given a context, with which opening ends, and a logger. A driver logs there for as
// long as it is open; its methods do not end with ctx.
type OpenFunc func(ctx context.Context, root string, options []string, idMap user.IdentityMapping, log *slog.Logger) (Driver, error)

var registry = struct {
	sync.RWMutex
	opens map[string]OpenFunc
}{opens: make(map[string]OpenFunc)}

// Register makes a driver known to [New]. The name is also that of the driver's directory in the root.
//
// Returns errdefs.ErrAlreadyExists if the name is taken. Returns errdefs.ErrInvalidArgument if the name is not a plain
// file name, or if initFunc is nil.
func Register(name string, initFunc InitFunc) error {
	if initFunc == nil {
		return RegisterOpen(name, nil)
	}
	return RegisterOpen(name, func(_ context.Context, root string, options []string, idMap user.IdentityMapping, _ *slog.Logger) (Driver, error) {
		return initFunc(root, options, idMap)
	})
}

// RegisterOpen is Register for a driver that logs, or that waits while it is opened.
func RegisterOpen(name string, open OpenFunc) error {
	if name == "" || name == "." || name != filepath.Base(name) || !filepath.IsLocal(name) {
		return fault.Wrap("register storage driver", name, fault.New(errdefs.ErrInvalidArgument, "the name is not a file name"))
	}
	if open == nil {
		return fault.Wrap("register storage driver", name, fault.New(errdefs.ErrInvalidArgument, "no init function"))
	}

	registry.Lock()
	defer registry.Unlock()
	if _, taken := registry.opens[name]; taken {
		return fault.Wrap("register storage driver", name, errdefs.ErrAlreadyExists)
	}
	registry.opens[name] = open
	return nil
}

// IsRegistered says whether a driver of that name was registered.
func IsRegistered(name string) bool {
	_, ok := lookup(name)
	return ok
}

// Drivers lists the names of the registered drivers, sorted.
func Drivers() []string {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Sorted(maps.Keys(registry.opens))
}

func lookup(name string) (OpenFunc, bool) {
	registry.RLock()
	defer registry.RUnlock()
	open, ok := registry.opens[name]
	return open, ok
}
