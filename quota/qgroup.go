package quota

import (
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Mode is how a btrfs filesystem keeps account of its subvolumes.
type Mode uint8

const (
	// Off keeps no account.
	Off Mode = iota
	// Classic charges each subvolume for every extent that it references, and knows which extents no other subvolume
	// references. It can enforce both scopes. It recounts by walking back references, which is slow with many
	// snapshots. The kernel gives up counting when a large tree is deleted: limits are then not enforced until a
	// rescan.
	Classic
	// Simple (kernel 6.7 and later) charges each extent to the subvolume that allocated it, at no cost. It can enforce
	// ScopeLayer only. Extents that are older than the mode are charged to no subvolume.
	Simple
)

// String returns "off", "classic" or "simple".
func (m Mode) String() string {
	return nameOf("Mode", []string{Off: "off", Classic: "classic", Simple: "simple"}, m)
}

// LimitedName is the name of an empty file, which says that there have been limits in this directory. If somebody turns
// quotas off, the limits are lost, and nothing else tells that they existed.
const LimitedName = "limits-set"

// Inherited is the limit that a new subvolume gets from the call that makes it, in the terms of its qgroup. The zero
// value is no limit.
type Inherited struct {
	MaxReferenced uint64 // bytes; 0: no limit
	MaxExclusive  uint64 // bytes; 0: no limit
}

// Policy says which mode may be used, and turned on at the first limit: the option btrfs.quota.
type Policy uint8

const (
	// PolicyAuto uses the mode that is on. If none is, the first limit turns one on: Simple where the
	// kernel has it and the scope allows, else Classic.
	PolicyAuto Policy = iota
	// PolicySimple uses and turns on Simple only.
	PolicySimple
	// PolicyClassic uses and turns on Classic only.
	PolicyClassic
	// PolicyOff refuses limits.
	PolicyOff
)

var policyNames = []string{PolicyAuto: "auto", PolicySimple: "simple", PolicyClassic: "classic", PolicyOff: "off"}

// String returns the name that ParsePolicy reads.
func (p Policy) String() string { return nameOf("Policy", policyNames, p) }

// ParsePolicy reads "auto", "simple", "classic" or "off", in any case. Returns errdefs.ErrInvalidArgument if s is
// anything else.
func ParsePolicy(s string) (Policy, error) {
	i := slices.Index(policyNames, strings.ToLower(s))
	if i < 0 {
		return 0, fault.New(errdefs.ErrInvalidArgument, "quota mode %q: must be auto, simple, classic or off", s)
	}
	return Policy(i), nil
}
