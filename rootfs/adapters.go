package rootfs

import (
	"context"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FromApplier makes an Applier of one of containerd's, such as the snapshotter package's Differ or the diff service
// of a running containerd. Each call of it gets the options.
func FromApplier(a diff.Applier, opts ...diff.ApplyOpt) Applier { return applier{a, opts} }

type applier struct {
	diff.Applier
	opts []diff.ApplyOpt
}

// Apply implements Applier.
func (a applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error) {
	return a.Applier.Apply(ctx, desc, mounts, a.opts...)
}

// FromComparer makes a MountDiffer of a containerd comparer. Each call of the comparer gets opts after the options
// for media type and reference. So diff.WithMediaType makes Diff make layers of another type.
func FromComparer(c diff.Comparer, opts ...diff.Opt) MountDiffer { return comparer{c, opts} }

type comparer struct {
	diff.Comparer
	opts []diff.Opt
}

// DiffMounts implements MountDiffer.
func (c comparer) DiffMounts(ctx context.Context, lower, upper []mount.Mount, media, ref string) (ocispec.Descriptor, error) {
	opts := append([]diff.Opt{diff.WithMediaType(media), diff.WithReference(ref)}, c.opts...)
	return c.Compare(ctx, lower, upper, opts...)
}
