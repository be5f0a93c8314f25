package quota

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Options are the options of a storage driver. The zero value is the default of each.
type Options struct {
	Size     uint64 // default limit of read-write layers in bytes; 0: none
	Scope    Scope  // whose data counts against a size
	MinSpace uint64 // least size that a layer may be given, in bytes; 0: any. btrfs only
	Policy   Policy // btrfs only
	FSName   string // dataset that holds the layers' datasets; "": find it. ZFS only
	ReadOnly bool   // open an existing home read-only
}

// optionSetters are the options of each driver, by key without the driver's prefix.
var optionSetters = map[string]map[string]func(o *Options, value string) error{
	"btrfs": {
		"size":        setSize,
		"min_space":   setMinSpace,
		"quota":       setPolicy,
		"quota_scope": setScope,
		"read_only":   setReadOnly,
	},
	"zfs": {
		"size":        setSize,
		"quota_scope": setScope,
		"fsname":      setFSName,
		"read_only":   setReadOnly,
	},
}

func setSize(o *Options, value string) (err error) { o.Size, err = ParseSize(value); return err }
func setMinSpace(o *Options, value string) (err error) {
	o.MinSpace, err = ParseSize(value)
	return err
}
func setPolicy(o *Options, value string) (err error) { o.Policy, err = ParsePolicy(value); return err }
func setScope(o *Options, value string) (err error)  { o.Scope, err = ParseScope(value); return err }

func setReadOnly(o *Options, value string) (err error) {
	if o.ReadOnly, err = strconv.ParseBool(value); err != nil {
		return fmt.Errorf("%w: %q: must be true or false", errdefs.ErrInvalidArgument, value)
	}
	return nil
}

func setFSName(o *Options, value string) error {
	if value == "" || strings.HasPrefix(value, "/") {
		return fmt.Errorf("%w: dataset %q: must be a name such as pool/cowshed", errdefs.ErrInvalidArgument, value)
	}
	o.FSName = value
	return nil
}

// ParseOptions reads the options of the driver "btrfs" or "zfs", each of the form "btrfs.size=10G". Case and
// surrounding space of a key do not matter. Of a key that comes twice the last counts, as in Docker, so that a
// command line can override a file.
//
// Returns errdefs.ErrInvalidArgument if the driver does not have a key, which may be another driver's. The same error
// is returned if a value cannot be read, or if options contradict each other.
func ParseOptions(driver string, opts []string) (Options, error) {
	setters, ok := optionSetters[driver]
	if !ok {
		return Options{}, fmt.Errorf("%w: driver %q has no options", errdefs.ErrInvalidArgument, driver)
	}
	var o Options
	for _, opt := range opts {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			return Options{}, fmt.Errorf("%w: option %q: must have the form key=value", errdefs.ErrInvalidArgument, opt)
		}
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		name, ok := strings.CutPrefix(key, driver+".")
		set := setters[name]
		if !ok || set == nil {
			return Options{}, fmt.Errorf("%w: unknown option %q: driver %s has %s", errdefs.ErrInvalidArgument, key, driver, optionNames(driver))
		}
		if err := set(&o, value); err != nil {
			return Options{}, fmt.Errorf("option %s: %w", key, err)
		}
	}
	return o, o.check()
}

func optionNames(driver string) string {
	names := slices.Sorted(maps.Keys(optionSetters[driver]))
	for i := range names {
		names[i] = driver + "." + names[i]
	}
	return strings.Join(names, ", ")
}

func (o Options) check() error {
	switch {
	case o.Policy == PolicySimple && o.Scope == ScopeTotal:
		return fmt.Errorf("%w: btrfs.quota=simple and btrfs.quota_scope=total exclude each other: simple quotas do not count the image, use classic", errdefs.ErrInvalidArgument)
	case o.Policy == PolicyOff && o.Size != 0:
		return fmt.Errorf("%w: btrfs.quota=off and btrfs.size exclude each other", errdefs.ErrInvalidArgument)
	case o.Size != 0:
		return o.checkMinSpace(o.Size)
	}
	return nil
}

func (o Options) checkMinSpace(size uint64) error {
	if size < o.MinSpace {
		return fmt.Errorf("%w: size %s is below btrfs.min_space, %s", errdefs.ErrInvalidArgument, FormatSize(size), FormatSize(o.MinSpace))
	}
	return nil
}

// LayerLimit reads the options of one layer. "size", in any case, is the only option. Without it a read-write layer
// has the driver's default limit, and any other layer has no limit.
//
// Returns errdefs.ErrInvalidArgument if there is another key, or if ParseSize refuses the size, or if the size is
// below MinSpace.
func (o Options) LayerLimit(storageOpt map[string]string, readWrite bool) (Limit, error) {
	limit := Limit{Scope: o.Scope}
	if readWrite {
		limit.Bytes = o.Size
	}
	// Sorted, so that of several errors it is always the same that is reported.
	for _, key := range slices.Sorted(maps.Keys(storageOpt)) {
		if name := strings.ToLower(key); name != "size" {
			return Limit{}, fmt.Errorf("%w: unknown layer option %q: there is only size", errdefs.ErrInvalidArgument, key)
		}
		size, err := ParseSize(storageOpt[key])
		if err != nil {
			return Limit{}, err
		}
		if err := o.checkMinSpace(size); err != nil {
			return Limit{}, err
		}
		limit.Bytes = size
	}
	if limit.Bytes == 0 {
		return Limit{}, nil
	}
	return limit, nil
}
