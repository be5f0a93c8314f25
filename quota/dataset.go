package quota

// ZFS counts the data of a dataset and enforces its limit by itself (zfsprops(7)). The property quota counts the data
// that a clone adds to its origin, with its snapshots: a limit of ScopeLayer. refquota counts everything that the
// dataset references, the origin's part included: a limit of ScopeTotal.

// DatasetProperty is the name of the ZFS property that is the limit of a dataset, in bytes.
func (l Limit) DatasetProperty() string {
	if l.Scope == ScopeTotal {
		return "refquota"
	}
	return "quota"
}

// DatasetLimit is the limit of a dataset with these ZFS properties, in bytes; 0 stands for none. If both are set,
// DatasetLimit is the limit of ScopeLayer.
func DatasetLimit(quota, refquota uint64) Limit {
	switch {
	case quota != 0:
		return Limit{Bytes: quota, Scope: ScopeLayer}
	case refquota != 0:
		return Limit{Bytes: refquota, Scope: ScopeTotal}
	default:
		return Limit{}
	}
}
