package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Options says where and how [New] opens a driver.
type Options struct {
	// Root is the directory of all drivers; each has a directory of its own name in it.
	Root string

	// DriverOptions are "key=value" options for the driver, such as "btrfs.size=10G".
	DriverOptions []string

	// DriverOptionsFor returns further options for the named driver, which is about to be opened. It is for programs that
	// let New choose the driver, and may be nil.
	DriverOptionsFor func(driver string) []string

	// IDMap maps the ids in the layers to those on the host. The zero value maps nothing.
	IDMap user.IdentityMapping

	// ReadOnly opens the layers that are there for reading alone, which works on a read-only filesystem too. It is
	// given to the driver as its option read_only=true, which a driver that cannot do so refuses.
	ReadOnly bool

	// ExperimentalEnabled is kept for programs written for Docker's API. It has no effect.
	ExperimentalEnabled bool

	// Priority names the drivers that New tries first where it is given no name and there is no earlier
	// state, in this order. Names that are not registered are passed over. nil stands for btrfs, zfs.
	Priority []string

	// Logger is told which driver was chosen and why, and the driver logs there. nil stands for slog.Default().
	Logger *slog.Logger
}

// defaultPriority is tried in this order where Options.Priority is nil.
var defaultPriority = []string{"btrfs", "zfs"}

// New is Open without a context: it opens a driver however long that takes.
func New(driverName string, config Options) (Driver, error) {
	return Open(context.Background(), driverName, config)
}

// Open opens a driver on config.Root, and gives up when ctx ends. It is recommended to name the driver: then Open opens
// that one, and looks at no other.
//
// With driverName "" the driver is found. Earlier state decides first. A directory in the root with a registered
// driver's name, and not empty, means that there are layers of that driver. Layers of several drivers are an
// *[AmbiguousError], returned before any driver is opened. Layers of one driver select it. If it cannot be opened,
// Open returns its error: with another driver, images and containers would seem to vanish.
//
// Without earlier state, Open tries drivers until one can work there: those of config.Priority in order, then the
// other registered drivers by name. A driver that fails for another reason than being unsupported ends the search
// with its error. If all are unsupported, the error gives the reason of each.
//
// Directories of Docker drivers that are not registered, such as overlay2, do not prevent opening, as in Docker. Open
// logs a warning that names them, since their layers will not be seen.
//
// IsDriverNotSupported is true for the error in three cases: no driver has that name, the named driver or the driver
// with layers cannot work in this place, or no driver can.
func Open(ctx context.Context, driverName string, config Options) (Driver, error) {
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	log := config.Logger
	if driverName != "" {
		driver, err := open(ctx, driverName, config)
		if err != nil {
			return nil, fault.Wrap("open storage driver", driverName, err)
		}
		return driver, nil
	}

	prior, err := Prior(config.Root)
	if err != nil {
		return nil, fault.Wrap("look for earlier layers in", config.Root, err)
	}
	if unseen := unseenDrivers(config.Root); len(unseen) > 0 {
		log.Warn("layers of storage drivers that this program does not have will not be seen",
			"root", config.Root, "drivers", unseen)
	}

	switch len(prior) {
	case 0:
		return openFirst(ctx, config)
	case 1:
		name := prior[0]
		driver, err := open(ctx, name, config)
		if err != nil {
			return nil, fmt.Errorf("%s holds layers of %s, which cannot be opened: %w", config.Root, name, err)
		}
		log.Info("using the storage driver that has layers here", "driver", name, "root", config.Root)
		return driver, nil
	default:
		return nil, &AmbiguousError{Root: config.Root, Drivers: prior}
	}
}

// openFirst opens the first driver that can work in config.Root.
func openFirst(ctx context.Context, config Options) (Driver, error) {
	names := config.Priority
	if names == nil {
		names = defaultPriority
	}
	names = distinct(slices.Concat(names, Drivers()))

	var reasons []error
	for _, name := range names {
		driver, err := open(ctx, name, config)
		if err == nil {
			config.Logger.Info("chose a storage driver", "driver", name, "root", config.Root)
			return driver, nil
		}
		if !IsDriverNotSupported(err) {
			return nil, fault.Wrap("open storage driver", name, err)
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", name, err))
	}
	if len(reasons) == 0 {
		reasons = append(reasons, ErrNotSupported) // an empty priority list, and nothing registered
	}
	return nil, fmt.Errorf("no storage driver can work in %s:\n%w", config.Root, errors.Join(reasons...))
}

// open opens one driver by name.
func open(ctx context.Context, name string, config Options) (Driver, error) {
	openDriver, ok := lookup(name)
	if !ok {
		return nil, unknownDriver(name)
	}
	options := slices.Clone(config.DriverOptions)
	if config.DriverOptionsFor != nil {
		options = append(options, config.DriverOptionsFor(name)...)
	}
	if config.ReadOnly {
		options = append(options, name+".read_only=true")
	}
	return openDriver(ctx, filepath.Join(config.Root, name), options, config.IDMap, config.Logger)
}

// unknownDriver says why there is no driver of that name, and what to do.
func unknownDriver(name string) error {
	if name == "aufs" {
		return fmt.Errorf("%w: the aufs storage driver was removed from Docker; \"cowshed migrate\" moves its layers "+
			"into a driver that is there (%s)", ErrNotSupported, known())
	}
	if slices.Contains(goneDrivers, name) {
		return fmt.Errorf("%w: the %s storage driver was removed from Docker and its layers cannot be read here; "+
			"with an engine that still has the driver, commit the containers to keep and save the images (docker save); "+
			"then import the images with a driver of this program (%s)", ErrNotSupported, name, known())
	}
	return fmt.Errorf("%w: no storage driver of that name in this program; it has %s", ErrNotSupported, known())
}

func known() string {
	if names := Drivers(); len(names) > 0 {
		return strings.Join(names, ", ")
	}
	return "none"
}

// distinct returns names without those that were there before, in order.
func distinct(names []string) []string {
	var kept []string
	for _, name := range names {
		if !slices.Contains(kept, name) {
			kept = append(kept, name)
		}
	}
	return kept
}
