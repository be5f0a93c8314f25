package quota

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Options are options that every storage driver has, those about limits first. The zero value is the default of each.
type Options struct {
	Size     uint64  // default limit of read-write layers in bytes; 0: none
	Scope    Scope   // whose data counts against a size
	MinSpace Minimum // least size that a layer may be given
	ReadOnly bool    // open an existing home read-only
}

// Minimum is the least size that a driver gives a layer. The zero value: any.
type Minimum struct {
	Bytes  uint64
	Option string // the option that says so, for people
}

// Setters set the options of a driver by their values. The keys are without the driver's prefix.
type Setters map[string]func(value string) error

// Setters set these options: size, quota_scope and read_only.
func (o *Options) Setters() Setters {
	return Setters{
		"size":        Set(&o.Size, ParseSize),
		"quota_scope": Set(&o.Scope, ParseScope),
		"read_only":   Set(&o.ReadOnly, parseBool),
	}
}

// Set makes a setter of an option that parse reads.
func Set[T any](option *T, parse func(value string) (T, error)) func(value string) error {
	return func(value string) (err error) {
		*option, err = parse(value)
		return err
	}
}

func parseBool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fault.New(errdefs.ErrInvalidArgument, "%q: must be true or false", value)
	}
	return b, nil
}

// Parse reads the options of a driver, each of the form "btrfs.size=10G", and sets them. Case and surrounding space of a
// key do not matter. Of a key that comes twice the last counts, as in Docker, so that a command line can override a file.
//
// Returns errdefs.ErrInvalidArgument if the driver does not have a key, which may be another driver's. The same error
// is returned if a value cannot be read.
func (s Setters) Parse(driver string, opts []string) error {
	for _, opt := range opts {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			return fault.New(errdefs.ErrInvalidArgument, "option %q: must have the form key=value", opt)
		}
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		name, ok := strings.CutPrefix(key, driver+".")
		set := s[name]
		if !ok || set == nil {
			return fault.New(errdefs.ErrInvalidArgument, "unknown option %q: driver %s has %s", key, driver, s.names(driver))
		}
		if err := set(value); err != nil {
			return fmt.Errorf("option %s: %w", key, err)
		}
	}
	return nil
}

func (s Setters) names(driver string) string {
	names := slices.Sorted(maps.Keys(s))
	for i := range names {
		names[i] = driver + "." + names[i]
	}
	return strings.Join(names, ", ")
}

// Check returns errdefs.ErrInvalidArgument if the options contradict each other.
func (o Options) Check() error {
	if o.Size != 0 {
		return o.checkMinSpace(o.Size)
	}
	return nil
}

func (o Options) checkMinSpace(size uint64) error {
	if size < o.MinSpace.Bytes {
		return fault.New(errdefs.ErrInvalidArgument, "size %s is below %s, %s", FormatSize(size), o.MinSpace.Option, FormatSize(o.MinSpace.Bytes))
	}
	return nil
}

// DefaultLimit is the limit of a read-write layer that names no size; the zero Limit: none.
func (o Options) DefaultLimit() Limit {
	if o.Size == 0 {
		return Limit{}
	}
	return Limit{Bytes: o.Size, Scope: o.Scope}
}

// ParseLimit reads the size that a layer names. Returns errdefs.ErrInvalidArgument if ParseSize refuses the size, or if
// it is below MinSpace.
func (o Options) ParseLimit(size string) (Limit, error) {
	bytes, err := ParseSize(size)
	if err == nil {
		err = o.checkMinSpace(bytes)
	}
	if err != nil {
		return Limit{}, err
	}
	return Limit{Bytes: bytes, Scope: o.Scope}, nil
}
