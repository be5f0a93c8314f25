package tocontainerd

import (
	"context"
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

// MakeContainer implements migrate.Target.
func (t *Target) MakeContainer(ctx context.Context, c *migrate.Container) error {
	ctx = t.in(ctx)
	if !containerID.MatchString(c.ID) {
		return fault.New(errdefs.ErrInvalidArgument, "container ID %q", c.ID)
	}
	if t.moby() {
		return t.stage(ctx, c)
	}
	info, err := t.containerSnapshot(ctx, c)
	if err != nil {
		return err
	}
	labels := maps.Clone(info.Labels)
	labels[NameLabel] = nameOf(c)
	_, err = t.snapshots.Update(ctx, snapshots.Info{Name: info.Name, Labels: labels}, "labels")
	return err
}

// nameOf is the name of a container, or its ID if it has none.
func nameOf(c *migrate.Container) string {
	if c.Name == "" {
		return c.ID
	}
	return c.Name
}

// containerSnapshot describes the snapshot of a container. Returns errdefs.ErrNotFound if there is none.
func (t *Target) containerSnapshot(ctx context.Context, c *migrate.Container) (snapshots.Info, error) {
	info, err := t.snapshots.Stat(ctx, c.ID)
	if err == nil && (info.Labels[LayerLabel] != c.Layer || info.Labels[FillingLabel] != "") {
		err = fault.New(errdefs.ErrNotFound, "snapshot %s does not belong to the container", c.ID)
	}
	return info, err
}

// hasContainer returns errdefs.ErrNotFound if a container is not there.
func (t *Target) hasContainer(ctx context.Context, c *migrate.Container) error {
	info, err := t.containerSnapshot(ctx, c)
	if err != nil {
		return err
	}
	if t.moby() {
		_, err := t.staged(c.ID)
		return err
	}
	if info.Labels[NameLabel] == "" {
		return fault.New(errdefs.ErrNotFound, "the snapshot of the container has no name yet")
	}
	return nil
}

// verifyContainer returns errdefs.ErrDataLoss if a container has another image than its source.
func (t *Target) verifyContainer(ctx context.Context, c *migrate.Container) error {
	if err := t.hasContainer(ctx, c); err != nil {
		return err
	}
	if !t.moby() {
		return nil
	}
	held, err := t.leases.List(ctx, "id=="+c.ID)
	if err == nil && len(held) == 0 {
		err = fault.New(errdefs.ErrDataLoss, "there is no lease for its layers")
	}
	if err != nil {
		return err
	}
	return t.verifyStaged(ctx, c)
}

// removeContainer takes back MakeContainer. The layers of the container stay.
func (t *Target) removeContainer(ctx context.Context, c *migrate.Container) error {
	if t.moby() {
		return t.unstage(c.ID)
	}
	info, err := t.containerSnapshot(ctx, c)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	labels := maps.Clone(info.Labels)
	delete(labels, NameLabel)
	_, err = t.snapshots.Update(ctx, snapshots.Info{Name: info.Name, Labels: labels}, "labels")
	return err
}
