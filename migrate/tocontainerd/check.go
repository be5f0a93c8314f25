package tocontainerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

// Check implements migrate.Target. It notes how the layers of the inventory belong together.
func (t *Target) Check(ctx context.Context, source migrate.Source, inv *migrate.Inventory) error {
	t.learn(inv)
	ctx = t.in(ctx)
	errs := []error{t.idle(ctx)}
	if t.moby() && t.opts.DockerRoot == "" && inv.Program == docker && len(inv.Containers) > 0 {
		errs = append(errs, errNoRoot)
	}
	for i := range inv.Images {
		errs = append(errs, t.checkNames(ctx, &inv.Images[i]))
	}
	for i := range inv.Containers {
		if err := t.checkContainer(ctx, &inv.Containers[i]); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", inv.Containers[i].ID, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return t.checkSpace(ctx, source, inv)
}

// checkNames returns errdefs.ErrAlreadyExists if another image has a name of this one.
func (t *Target) checkNames(ctx context.Context, image *migrate.Image) error {
	var errs []error
	for _, name := range image.Names {
		there, err := t.images.Get(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if isNamedFor(there, image) {
			continue
		}
		same, err := t.hasConfig(ctx, there.Target, image.ID, maxNesting)
		if err != nil {
			return err
		}
		if !same {
			errs = append(errs, t.nameTaken(there))
		}
	}
	return errors.Join(errs...)
}

// checkContainer returns errdefs.ErrAlreadyExists if something else has the snapshots of a container.
func (t *Target) checkContainer(ctx context.Context, c *migrate.Container) error {
	if !containerID.MatchString(c.ID) {
		return fault.New(errdefs.ErrInvalidArgument, "an ID must consist of letters, digits, \"-\", \"_\" and \".\"")
	}
	for layer, p := range t.places {
		if p.container != c.ID {
			continue
		}
		info, err := t.snapshots.Stat(ctx, p.name)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return err
		case info.Labels[LayerLabel] != layer:
			return fault.New(errdefs.ErrAlreadyExists, "containerd has another snapshot %s", p.name)
		}
	}
	return nil
}

// idle returns errdefs.ErrFailedPrecondition if an engine works on DockerRoot.
func (t *Target) idle(ctx context.Context) error {
	if !t.moby() || t.opts.Idle == nil {
		return nil
	}
	return t.opts.Idle(ctx)
}
