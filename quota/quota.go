// Package quota limits the size of volumes. It parses sizes, scopes and the options that carry them, and describes
// limits and usage. It enforces limits by the means of the filesystem (btrfs qgroups, ZFS properties).
package quota

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Scope says whose data counts against a limit.
type Scope uint8

const (
	// ScopeLayer counts the data that a volume adds to its source, as on overlay2, and as the ZFS property quota
	// behaves on a clone.
	ScopeLayer Scope = iota
	// ScopeTotal counts the image too: moby's meaning of size on btrfs, and the ZFS property refquota.
	ScopeTotal
)

var scopeNames = []string{ScopeLayer: "layer", ScopeTotal: "total"}

// String returns the name that ParseScope reads.
func (s Scope) String() string { return nameOf("Scope", scopeNames, s) }

// ParseScope reads "layer" or "total", in any case. Returns errdefs.ErrInvalidArgument if s is anything else.
func ParseScope(s string) (Scope, error) {
	i := slices.Index(scopeNames, strings.ToLower(s))
	if i < 0 {
		return 0, fault.New(errdefs.ErrInvalidArgument, "quota scope %q: must be layer (count the layer's own data) or total (count the image too)", s)
	}
	return Scope(i), nil
}

// nameOf is the name of one of several values of a type.
func nameOf[T ~uint8](typeName string, names []string, value T) string {
	if int(value) < len(names) {
		return names[value]
	}
	return fmt.Sprintf("%s(%d)", typeName, value)
}

// Limit is the most that a volume may hold. The zero value means no limit.
type Limit struct {
	Bytes uint64 // 0: no limit
	Scope Scope  // whose data is counted
}

// String describes l for people: "none", "10GiB", "10GiB total".
func (l Limit) String() string {
	switch {
	case l.Bytes == 0:
		return "none"
	case l.Scope == ScopeLayer:
		return FormatSize(l.Bytes)
	default:
		return FormatSize(l.Bytes) + " " + l.Scope.String()
	}
}

// Usage is the present size of a volume.
type Usage struct {
	Bytes uint64 // allocated by this volume since it was cloned or created
	Total uint64 // everything reachable from it, the image included; 0 where the filesystem cannot say without a walk
	// Exclusive says that Bytes leaves out data that other volumes reference too.
	Exclusive bool
}

// Against is the part of the usage that counts against a limit.
func (u Usage) Against(limit Limit) uint64 {
	if limit.Scope == ScopeTotal {
		return u.Total
	}
	return u.Bytes
}
