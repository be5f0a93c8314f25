package quota

import (
	"fmt"
	"strconv"
)

// ZFS counts the data of a dataset and enforces its limit by itself (zfsprops(7)). The property quota counts the data
// that a clone adds to its origin, with its snapshots: a limit of ScopeLayer. refquota counts everything that the
// dataset references, the origin's part included: a limit of ScopeTotal.

// DatasetProperties returns the properties that give a new dataset this limit, as "name=value" for zfs create
// and zfs clone. Without a limit there are none.
func (l Limit) DatasetProperties() []string {
	if l.Bytes == 0 {
		return nil
	}
	name := "quota"
	if l.Scope == ScopeTotal {
		name = "refquota"
	}
	return []string{name + "=" + strconv.FormatUint(l.Bytes, 10)}
}

// DatasetReplacement returns the properties that give a dataset this limit in place of any that it has, as
// "name=value" for zfs set.
func (l Limit) DatasetReplacement() []string {
	switch {
	case l.Bytes == 0:
		return []string{"quota=none", "refquota=none"}
	case l.Scope == ScopeTotal:
		return append(l.DatasetProperties(), "quota=none")
	default:
		return append(l.DatasetProperties(), "refquota=none")
	}
}

// DatasetLimit reads the limit of a dataset from the values of its properties quota and refquota, as zfs
// prints them with -p. Of two limits the one of ScopeLayer is given.
func DatasetLimit(quota, refquota string) (Limit, error) {
	layer, err := strconv.ParseUint(quota, 10, 64)
	if err != nil {
		return Limit{}, fmt.Errorf("quota %q: %w", quota, err)
	}
	total, err := strconv.ParseUint(refquota, 10, 64)
	if err != nil {
		return Limit{}, fmt.Errorf("refquota %q: %w", refquota, err)
	}
	switch {
	case layer != 0:
		return Limit{Bytes: layer, Scope: ScopeLayer}, nil
	case total != 0:
		return Limit{Bytes: total, Scope: ScopeTotal}, nil
	default:
		return Limit{}, nil
	}
}
