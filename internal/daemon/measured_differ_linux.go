package daemon

import (
	"context"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/snapshotter"
)

// measuredDiffer counts the layers of a differ, and the limits that it runs into.
type measuredDiffer struct {
	snapshotter.DiffService
	metrics *metrics
}

// Apply implements diff.Applier.
func (d measuredDiffer) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	applied, err := d.DiffService.Apply(ctx, desc, mounts, opts...)
	d.metrics.layer(diffService, layerApplied, applied.Size, err)
	d.metrics.limitHit(diffService, err)
	return applied, err
}

// Compare implements diff.Comparer.
func (d measuredDiffer) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	made, err := d.DiffService.Compare(ctx, lower, upper, opts...)
	d.metrics.layer(diffService, layerMade, made.Size, err)
	d.metrics.limitHit(diffService, err)
	return made, err
}
