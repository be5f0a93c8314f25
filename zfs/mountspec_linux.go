package zfs

import (
	"context"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// MountSpec says how others can mount a volume: by its dataset. To mount a sealed volume read-only, they mount the
// snapshot that seals it.
func (b *Backend) MountSpec(ctx context.Context, name string, readOnly bool) (cowcommon.MountSpec, error) {
	d, err := b.volume(ctx, name)
	if err != nil {
		return cowcommon.MountSpec{}, fault.Wrap("describe mount of volume", name, err)
	}
	source := b.datasetOf(name)
	if readOnly && d.sealed {
		source += "@" + sealName
	}
	return cowcommon.MountSpec{Type: "zfs", Source: source}, nil
}

// CheckMountSpec always succeeds: datasets are mounted by name.
func (b *Backend) CheckMountSpec() error { return nil }
