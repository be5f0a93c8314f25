package rootfs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Layer describes a layer twice: Diff is its uncompressed tar, whose digest identifies it in a chain; Blob transports
// that tar, and may be compressed. Of Diff only the digest is needed.
type Layer struct {
	Diff ocispec.Descriptor
	Blob ocispec.Descriptor
}

// Applier extracts layers.
type Applier interface {
	// Apply extracts the layer that a blob holds on top of mounts, and returns the descriptor of its
	// uncompressed tar.
	Apply(context.Context, ocispec.Descriptor, []mount.Mount) (ocispec.Descriptor, error)
}

// ApplyLayers applies layers on top of each other, the first at the bottom. It returns their chain ID, which is the
// name of the uppermost snapshot. Existing snapshots are used again. Without layers, the chain ID is "", which means no
// parent.
//
// After an error the snapshots of the layers below the failed layer remain.
//
// Returns errdefs.ErrInvalidArgument if a layer has no valid digest. Returns errdefs.ErrFailedPrecondition if the
// extracted layer has another digest than the layer. Returns errdefs.ErrUnavailable if snapshots were removed as fast
// as they were made.
func ApplyLayers(ctx context.Context, layers []Layer, sn snapshots.Snapshotter, a Applier) (digest.Digest, error) {
	if len(layers) == 0 {
		return "", nil
	}
	chain := make([]digest.Digest, 0, len(layers))
	for _, layer := range layers {
		chain = append(chain, layer.Diff.Digest)
	}
	u, err := newUnpacking(layers, chain, sn, a)
	if err != nil {
		return "", err
	}
	if _, err := u.run(ctx); err != nil {
		return "", err
	}
	return digest.Digest(u.names[len(u.names)-1]), nil
}

// ApplyLayer applies one layer on top of a chain. The chain is given from the bottom to the top as the digests of the
// uncompressed tars, and must exist unless it is empty. ApplyLayer reports whether it applied the layer: false
// without an error says that the snapshot existed, or that another caller was faster.
//
// Errors are those of ApplyLayers, and errdefs.ErrNotFound if the chain or the blob does not exist.
func ApplyLayer(ctx context.Context, layer Layer, chain []digest.Digest, sn snapshots.Snapshotter, a Applier) (bool, error) {
	u, err := newUnpacking([]Layer{layer}, slices.Concat(chain, []digest.Digest{layer.Diff.Digest}), sn, a)
	if err != nil {
		return false, err
	}
	return u.run(ctx)
}

// unpacking is the application of layers, which are the upper part of a chain.
type unpacking struct {
	layers  []Layer
	parents []string // of the snapshot of each layer
	names   []string // of the snapshot of each layer: the chain ID
	sn      snapshots.Snapshotter
	applier Applier
}

// newUnpacking names the snapshots of layers. chain has the digests of all layers, also of those below.
func newUnpacking(layers []Layer, chain []digest.Digest, sn snapshots.Snapshotter, a Applier) (*unpacking, error) {
	for _, d := range chain {
		if err := d.Validate(); err != nil {
			return nil, fault.New(errdefs.ErrInvalidArgument, "rootfs: digest %q of a layer: %w", d, err)
		}
	}
	names := []string{""} // that of the snapshot below the lowest
	for _, id := range identity.ChainIDs(slices.Clone(chain)) {
		names = append(names, id.String())
	}
	below := len(chain) - len(layers)
	return &unpacking{layers: layers, parents: names[below : len(names)-1], names: names[below+1:], sn: sn, applier: a}, nil
}

// errNoParent says that a layer cannot be applied yet.
var errNoParent = errors.New("layer below is not there")

// run makes sure that the snapshots of all layers exist, and reports whether it has made the uppermost. It goes down
// from there as long as parents are missing, and then up again. So each snapshot has a child soon, and garbage
// collection less time to take it away.
func (u *unpacking) run(ctx context.Context) (applied bool, err error) {
	top := len(u.layers) - 1
	// Down and up are two steps for each layer, unless others remove snapshots in the meantime.
	steps := 4 * len(u.layers)
	for i := top; i <= top; steps-- {
		if steps == 0 {
			return false, fault.New(errdefs.ErrUnavailable, "rootfs: apply layer %s: its parents keep being removed", u.layers[i].Diff.Digest)
		}
		applied, err = u.apply(ctx, i)
		switch {
		case err == nil:
			i++
		case errors.Is(err, errNoParent) && i > 0:
			i--
		default:
			return false, fmt.Errorf("rootfs: apply layer %s: %w", u.layers[i].Diff.Digest, err)
		}
	}
	return applied, nil
}

// apply makes the snapshot of one layer, unless it is there. errNoParent: its parent is not there.
func (u *unpacking) apply(ctx context.Context, i int) (applied bool, err error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	name := u.names[i]
	if exists, err := committed(ctx, u.sn, name); err != nil || exists {
		return false, err
	}
	key := extractionKey(name)
	mounts, err := u.sn.Prepare(ctx, key, u.parents[i])
	if errdefs.IsNotFound(err) {
		return false, fmt.Errorf("%w: %w", errNoParent, err)
	}
	// A snapshot may have been made although the request for it failed: a remote one, whose answer got lost.
	done := false
	defer func() {
		if !done {
			discard(ctx, u.sn, key, &err)
		}
	}()
	if err != nil {
		return false, err
	}
	if err := u.extract(ctx, u.layers[i], mounts); err != nil {
		return false, err
	}
	err = u.sn.Commit(ctx, name, key)
	if errdefs.IsAlreadyExists(err) {
		return false, nil // another has applied the same layer
	}
	done = err == nil
	return done, err
}

// extract applies a layer and checks its digest.
func (u *unpacking) extract(ctx context.Context, layer Layer, mounts []mount.Mount) error {
	extracted, err := u.applier.Apply(ctx, layer.Blob, mounts)
	if err != nil {
		return err
	}
	if extracted.Digest != layer.Diff.Digest {
		return fault.New(errdefs.ErrFailedPrecondition, "extracted layer has digest %q", extracted.Digest)
	}
	return nil
}
