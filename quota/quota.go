// Package quota says how much a volume may hold: it parses sizes and scopes, describes limits and usage,
// and enforces limits with what the filesystem offers (btrfs qgroups, ZFS properties).
package quota

// Scope says what counts against a limit.
type Scope uint8

const (
	// ScopeLayer counts what a volume adds to what it started from, as on overlay2 and as the ZFS
	// property quota behaves on a clone.
	ScopeLayer Scope = iota
	// ScopeTotal counts the image too: moby's meaning of size on btrfs, and the ZFS property refquota.
	ScopeTotal
)

// Limit is the most that a volume may hold. The zero value means no limit.
type Limit struct {
	Bytes uint64 // 0: no limit
	Scope Scope  // what is counted against Bytes
}

// Usage is what a volume holds now.
type Usage struct {
	Bytes uint64 // allocated by this volume since it was cloned or created
	Total uint64 // everything reachable from it, the image included; 0 where the filesystem cannot say without a walk
	Limit Limit
}
