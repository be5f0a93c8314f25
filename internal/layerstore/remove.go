package layerstore

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/bindmount"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/live"
)

// Remove removes layers, children before parents, and calls removed for each. It removes none unless all can be removed. With
// force, it removes layers that others were made from too.
func (s *Store) Remove(ctx context.Context, chosen []cowcommon.Volume, force bool, removed func(v cowcommon.Volume) error) error {
	layers, err := s.removable(ctx, chosen, force)
	if err != nil {
		return err
	}
	for _, v := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.removeLayer(ctx, v.Name); err != nil {
			return s.WhyKept(ctx, v, err)
		}
		if err := removed(v); err != nil {
			return err
		}
	}
	s.Sweep(ctx)
	return nil
}

// removeLayer removes a layer. Moments whose roots share it, and of which the layers are gone, go first.
func (s *Store) removeLayer(ctx context.Context, name string) error {
	remove := s.Driver.Backend().Remove
	if image.IsLayerName(name) { // it may come from an import
		remove = s.Images.RemoveLayer
	}
	err := remove(ctx, name)
	if errors.Is(err, fault.ErrInUse) {
		if err := s.Live.SweepSharers(ctx, name); err != nil {
			return err
		}
		err = remove(ctx, name)
	}
	return err
}

// removable makes sure that layers can be removed, and sorts them, children before parents.
func (s *Store) removable(ctx context.Context, chosen []cowcommon.Volume, force bool) ([]cowcommon.Volume, error) {
	users, err := s.Images.Users()
	if err != nil {
		return nil, err
	}
	children, err := s.children(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range chosen {
		if s.IsContainer(v) {
			return nil, fault.Said(errdefs.ErrFailedPrecondition, "%s is not removed here, but by its engine", s.Shown(v.Name))
		}
		if user, ok := users[v.Name]; ok {
			return nil, fault.Said(errdefs.ErrFailedPrecondition, "layer %s is part of %s: remove %[2]s with cowshed rmi", ShortName(v.Name), user)
		}
		if left := without(children[v.Name], chosen); len(left) > 0 && !force {
			return nil, fault.Said(errdefs.ErrFailedPrecondition, "layer %s is the parent of %s; remove these too, or use --force",
				ShortName(v.Name), strings.Join(left, ", "))
		}
		if err := s.CheckUnmounted(ctx, v); err != nil {
			return nil, err
		}
	}
	chosen = slices.Clone(chosen)
	sortChildrenFirst(chosen, children)
	return chosen, nil
}

// children lists the layers that were made from each layer, or share it.
func (s *Store) children(ctx context.Context) (map[string][]string, error) {
	children := make(map[string][]string)
	for v, err := range s.Driver.Backend().Volumes(ctx) {
		if err != nil {
			return nil, err
		}
		if v.Parent != "" && !live.IsMoment(v.Name) { // snapshots go with their layer
			children[v.Parent] = append(children[v.Parent], v.Name)
		}
	}
	sharers, err := cowcommon.Sharers(ctx, s.Driver.Backend())
	if err != nil {
		return nil, err
	}
	for layer, names := range sharers {
		for _, name := range names {
			if !live.IsMoment(name) && !slices.Contains(children[layer], name) {
				children[layer] = append(children[layer], name)
			}
		}
	}
	return children, nil
}

func without(names []string, layers []cowcommon.Volume) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return slices.ContainsFunc(layers, func(v cowcommon.Volume) bool { return v.Name == name })
	})
}

func sortChildrenFirst(layers []cowcommon.Volume, children map[string][]string) {
	var height func(name string) int
	height = func(name string) int {
		most := 0
		for _, child := range children[name] {
			most = max(most, 1+height(child))
		}
		return most
	}
	slices.SortStableFunc(layers, func(a, b cowcommon.Volume) int { return height(a.Name) - height(b.Name) })
}

// WhyKept is err, for which a layer could not be removed, or where it has been mounted since that was made
// sure of.
func (s *Store) WhyKept(ctx context.Context, v cowcommon.Volume, err error) error {
	if errdefs.IsFailedPrecondition(err) {
		if mounted := s.CheckUnmounted(ctx, v); errdefs.IsFailedPrecondition(mounted) {
			return mounted
		}
	}
	return err
}

// CheckUnmounted reports where the layer is mounted as an error, and the processes that hold these mounts.
func (s *Store) CheckUnmounted(ctx context.Context, v cowcommon.Volume) error {
	targets, err := s.Targets(ctx, v.Name)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return nil
	}
	where := strings.Join(targets, ", ")
	if holders := bindmount.Holders(targets[0]); len(holders) > 0 {
		where += ", in use by " + strings.Join(holders, ", ")
	}
	if s.IsContainer(v) {
		return fault.Said(errdefs.ErrFailedPrecondition, "%s is mounted on %s; stop the container first", s.Shown(v.Name), where)
	}
	return fault.Said(errdefs.ErrFailedPrecondition, "layer %s is mounted on %s; unmount it with cowshed unmount %[1]s", s.Shown(v.Name), where)
}

// Targets lists where a layer is mounted, the driver's own mount apart.
func (s *Store) Targets(ctx context.Context, name string) (targets []string, err error) {
	err = s.Mounted(ctx, name, func(dir string) (err error) {
		targets, err = bindmount.Targets(dir, s.Home(), s.Driver.String())
		targets = slices.DeleteFunc(targets, func(target string) bool { return target == dir })
		return err
	})
	return targets, err
}

// Mounted calls do while the driver itself has a layer mounted on dir.
func (s *Store) Mounted(ctx context.Context, name string, do func(dir string) error) error {
	dir, err := s.Driver.WithContext(ctx).Get(name, "")
	if err != nil {
		return err
	}
	return errors.Join(do(dir), s.Driver.Put(name))
}
