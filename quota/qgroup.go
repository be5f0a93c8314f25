package quota

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Mode is how a btrfs filesystem keeps account of its subvolumes.
type Mode uint8

const (
	// Off keeps none.
	Off Mode = iota
	// Classic charges each subvolume for every extent that it references, and knows which of them no other
	// references. It can enforce both scopes. It recounts by walking back references, which is slow with many
	// snapshots. The kernel gives up counting when a large tree is deleted: limits are then not enforced until a
	// rescan.
	Classic
	// Simple (kernel 6.7 and later) charges each extent to the subvolume that allocated it, at no cost. It
	// can enforce ScopeLayer only. Extents that are older than the mode are charged to none.
	Simple
)

// String returns "off", "classic" or "simple".
func (m Mode) String() string {
	switch m {
	case Off:
		return "off"
	case Classic:
		return "classic"
	case Simple:
		return "simple"
	default:
		return fmt.Sprintf("Mode(%d)", uint8(m))
	}
}

// LimitedName is the name of an empty file that says: there have been limits in this directory. Limits go with the
// quotas when somebody turns these off, and nothing else would tell that there were any.
const LimitedName = "limits-set"

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

// String returns the name that ParsePolicy reads.
func (p Policy) String() string {
	switch p {
	case PolicyAuto:
		return "auto"
	case PolicySimple:
		return "simple"
	case PolicyClassic:
		return "classic"
	case PolicyOff:
		return "off"
	default:
		return fmt.Sprintf("Policy(%d)", uint8(p))
	}
}

// ParsePolicy reads "auto", "simple", "classic" or "off", in any case. Anything else is an
// errdefs.ErrInvalidArgument.
func ParsePolicy(s string) (Policy, error) {
	name := strings.ToLower(s)
	for _, p := range []Policy{PolicyAuto, PolicySimple, PolicyClassic, PolicyOff} {
		if name == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("%w: quota mode %q: must be auto, simple, classic or off", errdefs.ErrInvalidArgument, s)
}
