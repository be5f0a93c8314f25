package tocontainerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/migrate"
)

// Remove implements migrate.Target. Layers on which others have made images stay.
func (t *Target) Remove(ctx context.Context, item migrate.Item) error {
	ctx = t.in(ctx)
	switch {
	case item.Image != nil:
		return t.removeImage(ctx, item.Image)
	case item.Container != nil:
		return t.removeContainer(ctx, item.Container)
	}
	return t.removeLayer(ctx, item.Layer)
}

func (t *Target) removeLayer(ctx context.Context, layer *migrate.Layer) error {
	if layer.Kind == migrate.ImageLayer {
		return t.releaseLayer(ctx, layer)
	}
	removed := t.removeSnapshot(ctx, layer)
	// The lease of a container goes with the first of its layers, which is removed last.
	if err := errors.Join(t.removePartial(ctx, layer), t.deleteLeases(ctx, LayerLabel, layer.ID)); err != nil {
		return err
	}
	if layer.Kind == migrate.ContainerLayer || !errdefs.IsFailedPrecondition(removed) {
		return removed
	}
	// "docker commit" makes the image's snapshot on the init layer, which stays then. And of a child that is garbage and
	// gone, containerd says that it is there. containerd's collection tells both from each other.
	return t.collect(ctx)
}

func (t *Target) removeSnapshot(ctx context.Context, layer *migrate.Layer) error {
	info, err := t.find(ctx, layer)
	if err == nil {
		err = t.letGo(ctx, t.ofSnapshots(), info.Name)
	}
	if err == nil {
		err = t.snapshots.Remove(ctx, info.Name)
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// releaseLayer lets go of a layer of an image. Whether others hold its snapshot or its blob, containerd knows: it collects
// both if nobody does. It looks at everything for that. So Undo has it collect all at once, at the end.
func (t *Target) releaseLayer(ctx context.Context, layer *migrate.Layer) error {
	errs := []error{t.removePartial(ctx, layer), t.letGo(ctx, t.ofSnapshots(), layer.ChainID.String())}
	if blob, err := t.layerBlob(ctx, layer.DiffID); err == nil {
		errs = append(errs, t.letGo(ctx, "content", blob.Digest.String()))
	}
	if t.undoing {
		t.collectLater = func() error { return t.collect(context.WithoutCancel(ctx)) }
	} else {
		errs = append(errs, t.collect(ctx))
	}
	return errors.Join(errs...)
}

// removePartial removes the remains of a layer after a crash.
func (t *Target) removePartial(ctx context.Context, layer *migrate.Layer) error {
	name := layer.ChainID.String()
	if layer.Kind != migrate.ImageLayer {
		p, err := t.placeOf(ctx, layer.ID)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		name = p.name
	}
	info, err := t.snapshots.Stat(ctx, keyOf(layer, name))
	if err == nil && info.Labels[LayerLabel] == layer.ID && isTemporary(info) {
		err = t.snapshots.Remove(ctx, info.Name)
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// letGo takes a thing from the lease of the migration.
func (t *Target) letGo(ctx context.Context, kind, id string) error {
	err := t.leases.DeleteResource(ctx, t.lease, leases.Resource{Type: kind, ID: id})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("take %s from lease %s: %w", id, t.lease.ID, err)
	}
	return nil
}

// collect has containerd collect garbage, which it does when a lease ends.
func (t *Target) collect(ctx context.Context) error {
	lease := leases.Lease{ID: t.lease.ID + "-collect"}
	if _, err := t.leases.Create(ctx, leases.WithID(lease.ID), leases.WithExpiration(time.Minute)); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return t.endLease(ctx, lease)
}
