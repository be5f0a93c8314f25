package tocontainerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Check implements migrate.Target. It notes how the layers of the inventory belong together.
func (t *Target) Check(ctx context.Context, _ migrate.Source, inv *migrate.Inventory) error {
	t.learn(inv)
	ctx = t.in(ctx)
	errs := []error{t.checkEngine()}
	if t.moby() && t.opts.DockerRoot == "" && inv.Program == "docker" && len(inv.Containers) > 0 {
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
	return errors.Join(errs...)
}

// checkNames returns errdefs.ErrAlreadyExists if another image has a name of this one.
func (t *Target) checkNames(ctx context.Context, image *migrate.Image) error {
	var errs []error
	for _, name := range image.Names {
		there, err := t.images.Get(ctx, name)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return err
		case there.Labels[ImageLabel] != image.ID.String():
			errs = append(errs, nameTaken(there))
		}
	}
	return errors.Join(errs...)
}

// checkContainer returns errdefs.ErrAlreadyExists if something else has the snapshots of a container.
func (t *Target) checkContainer(ctx context.Context, c *migrate.Container) error {
	if !containerID.MatchString(c.ID) {
		return fault.New(errdefs.ErrInvalidArgument, "an ID must consist of letters, digits and -_.")
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

// locks are files in DockerRoot that a running engine has locked, of whatever version.
var locks = []string{"volumes/metadata.db", "network/files/local-kv.db"}

// checkEngine returns errdefs.ErrFailedPrecondition if an engine runs on DockerRoot.
func (t *Target) checkEngine() (err error) {
	if !t.moby() || t.opts.DockerRoot == "" {
		return nil
	}
	root, err := rootdir.Open(t.opts.DockerRoot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, name := range locks {
		file, err := root.OpenFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		free, err := isFree(file)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		if !free {
			return fault.New(errdefs.ErrFailedPrecondition, "an engine works on %s (%s is locked): stop it first", root.Path(), root.Join(name))
		}
	}
	return nil
}
