package cowdriver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/sharedroot"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
)

// Registration describes a driver over a Backend to programs that have not opened it. docs/add-a-backend.md says how to
// write one.
type Registration struct {
	// Name is the name of the driver, of its home in the root, and of its filesystem in the kernel's lists. Its options
	// start with it.
	Name string
	// Filesystem is the filesystem's name for people.
	Filesystem string
	// Open opens the driver.
	Open graphdriver.OpenFunc
	// ParseOptions reads the driver's options, and returns those that every driver has.
	ParseOptions func(options []string) (cowcommon.DriverOptions, error)
	// Names lists the names of probable layers, for the completion of command lines. It opens, locks, mounts and cleans
	// up nothing.
	Names func(ctx context.Context, home string, options []string) ([]string, error)
	// Usable reports whether the driver can work at path: nil, or an error of the kinds that package detect describes.
	Usable func(ctx context.Context, path string) error

	// A driver may lack the following.

	// Devices reports errors of the filesystem's devices.
	Devices func(f detect.Filesystem) []cowcommon.Finding
	// Features are functions of the kernel that the driver uses where they exist.
	Features func(f detect.Filesystem) []detect.Feature
	// CheckShared reports whether the driver can work in dir while other services work in directories beside it.
	// Returns ErrFailedPrecondition if the driver would take their volumes for its own.
	CheckShared func(dir string, options []string) error
	// CheckAdopt is cowcommon.Adopter.CheckAdopt for a home that is not there yet.
	CheckAdopt func(ctx context.Context, home string, options []string, source, planned string) error
	// Free is cowcommon.Spacer.Free for a home that is not there yet.
	Free func(ctx context.Context, home string, options []string) (uint64, error)
	// Place is the option that names the place of the volumes, if that is not the home.
	Place string
	// Files are the files in a home that are not empty even without volumes.
	Files []string
}

// NamesPlace reports whether an option, "driver.name=value", names the place of the driver's volumes.
func (r Registration) NamesPlace(option string) bool {
	key, _, _ := strings.Cut(option, "=")
	return r.Place != "" && strings.EqualFold(strings.TrimSpace(key), r.Name+"."+r.Place)
}

var registered struct {
	sync.RWMutex
	all []Registration
}

// Register makes a driver known to graphdriver.New and to programs. It is for init functions, and panics if the name is
// taken.
func Register(r Registration) {
	if err := graphdriver.RegisterOpen(r.Name, r.Open); err != nil {
		panic(err)
	}
	registered.Lock()
	defer registered.Unlock()
	registered.all = append(registered.all, r)
	slices.SortFunc(registered.all, func(a, b Registration) int { return strings.Compare(a.Name, b.Name) })
}

// Registered lists the drivers in the order of their names.
func Registered() []Registration {
	registered.RLock()
	defer registered.RUnlock()
	return slices.Clone(registered.all)
}

// Lookup finds a driver by its name.
func Lookup(name string) (r Registration, ok bool) {
	for _, r := range Registered() {
		if r.Name == name {
			return r, true
		}
	}
	return Registration{}, false
}

// Filesystems names the filesystems of all drivers, for people: "btrfs or ZFS".
func Filesystems() string {
	var names []string
	for _, r := range Registered() {
		names = append(names, r.Filesystem)
	}
	return strings.Join(names, " or ")
}

// ParseOptions reads the options of a driver, and returns those that every driver has. Returns ErrInvalidArgument if
// there is no such driver or option.
func ParseOptions(driver string, options []string) (cowcommon.DriverOptions, error) {
	r, ok := Lookup(driver)
	if !ok {
		return cowcommon.DriverOptions{}, fault.New(errdefs.ErrInvalidArgument, "driver %q has no options", driver)
	}
	return r.ParseOptions(options)
}

// Open makes the driver called name over the Backend that open opens on home. usable is the answer of package detect. Open
// returns it as an error if the driver cannot work there. why is nil for a Backend that can be written to. Otherwise it
// is the reason why not: the option for reading alone, or, with this option, a filesystem that is read-only.
//
// Volumes can have shared roots if opts.RootStyle asks for them, or if the home was once opened so. Other homes pay nothing
// for them.
func Open(ctx context.Context, name, home string, usable error, opts Options, open func(why error) (cowcommon.Backend, error)) (graphdriver.Driver, error) {
	var why error
	var cannotWrite *detect.ReadOnlyError
	switch {
	case opts.Quota.ReadOnly && errors.As(usable, &cannotWrite):
		why = cannotWrite
	case usable != nil:
		return nil, fmt.Errorf("%s: %w", name, usable)
	case opts.Quota.ReadOnly:
		why = fmt.Errorf("it was opened with %s.read_only=true", name)
	}
	if why == nil {
		sharedroot.Sweep(home, cmp.Or(opts.Logger, slog.Default()))
	}
	backend, err := open(why)
	if err != nil {
		return nil, err
	}
	d, err := openStyle(ctx, name, home, backend, why != nil, opts)
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	return d, nil
}

// openStyle makes the driver over a Backend with or without shared roots.
func openStyle(ctx context.Context, name, home string, backend cowcommon.Backend, readOnly bool, opts Options) (*Driver, error) {
	if readOnly || opts.RootStyle != cowcommon.SharedRoot {
		stayOff := sharedroot.StayOff
		if readOnly {
			stayOff = sharedroot.StayOffReading
		}
		end, isOn, err := stayOff(ctx, home)
		if err != nil {
			return nil, err
		}
		if !isOn {
			return New(name, &unshared{backend, end}, opts), nil
		}
	}
	_, gid := opts.IDMap.RootPair()
	shared, err := sharedroot.New(ctx, backend, home, sharedroot.Options{GID: gid, ReadOnly: readOnly, Logger: opts.Logger})
	if err != nil {
		return nil, err
	}
	return New(name, shared, opts), nil
}

// unshared is a Backend without shared roots. Until it is closed, nobody turns them on.
type unshared struct {
	cowcommon.Backend
	end func() error
}

// Unwrap returns the Backend inside.
func (b *unshared) Unwrap() cowcommon.Backend { return b.Backend }

// Close closes the Backend inside first. Closing twice does nothing.
func (b *unshared) Close() error { return errors.Join(b.Backend.Close(), b.end()) }
