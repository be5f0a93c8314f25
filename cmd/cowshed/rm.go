package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/bindmount"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/live"
)

func newRmCommand(a *app) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove layers",
		Long: `Removes layers with all that is in them, children before parents. It removes nothing unless all of them can
be removed: a layer that is mounted, that other layers were made from, or that an image has cannot.

With --force, the command ignores layers that do not exist, and removes layers that others were made from.
The others stay complete, but cannot be compared with the removed layer afterwards. The snapshots of a layer go with
it, and its forks stay.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args, func(s *store) error { return s.rm(cmd, args, force) })
		},
		ValidArgsFunction: completeLayers(a, -1, false),
	}
	addContainers(a, cmd)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "ignore layers that do not exist, and remove layers that others were made from")
	return cmd
}

func (s *store) rm(cmd *cobra.Command, names []string, force bool) error {
	layers, err := s.removable(cmd, names, force)
	if err != nil {
		return err
	}
	for _, v := range layers {
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		if err := s.removeLayer(cmd.Context(), v.Name); err != nil {
			return s.whyKept(cmd.Context(), v, err)
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), s.shown(v.Name)); err != nil {
			return err
		}
	}
	return s.live.Sweep(cmd.Context())
}

// removeLayer removes a layer. Moments whose roots share it, and of which the layers are gone, go first.
func (s *store) removeLayer(ctx context.Context, name string) error {
	remove := s.driver.Backend().Remove
	if image.IsLayerName(name) { // it may come from an import
		remove = s.images.RemoveLayer
	}
	err := remove(ctx, name)
	if errors.Is(err, fault.ErrInUse) {
		if err := s.live.Sweep(ctx); err != nil {
			return err
		}
		err = remove(ctx, name)
	}
	return err
}

// removable finds the layers to remove, children before parents, and makes sure that they can be.
func (s *store) removable(cmd *cobra.Command, names []string, force bool) ([]cowcommon.Volume, error) {
	var chosen []cowcommon.Volume
	for _, name := range names {
		v, err := s.layerAlone(cmd.Context(), name)
		if errdefs.IsNotFound(err) && force {
			s.log.Info("passed over", "name", name, "reason", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(chosen, func(c cowcommon.Volume) bool { return c.Name == v.Name }) {
			chosen = append(chosen, v)
		}
	}
	users, err := s.images.Users()
	if err != nil {
		return nil, err
	}
	children, err := s.children(cmd)
	if err != nil {
		return nil, err
	}
	for _, v := range chosen {
		if s.isContainer(v) {
			return nil, failf(errdefs.ErrFailedPrecondition, "%s is not removed here, but by its engine", s.shown(v.Name))
		}
		if user, ok := users[v.Name]; ok {
			return nil, failf(errdefs.ErrFailedPrecondition, "layer %s is part of %s; remove that with cowshed rmi", shortName(v.Name), user)
		}
		if left := without(children[v.Name], chosen); len(left) > 0 && !force {
			return nil, failf(errdefs.ErrFailedPrecondition, "layer %s is the parent of %s; remove these too, or use --force",
				shortName(v.Name), strings.Join(left, ", "))
		}
		if err := s.checkUnmounted(cmd.Context(), v); err != nil {
			return nil, err
		}
	}
	sortChildrenFirst(chosen, children)
	return chosen, nil
}

// layerAlone finds the layer of that name, or the only layer of an image whose name starts so. The name of an
// image stands for no layer here.
func (s *store) layerAlone(ctx context.Context, name string) (cowcommon.Volume, error) {
	if live.IsMoment(name) || strings.Contains(name, "@") {
		return cowcommon.Volume{}, failf(errdefs.ErrInvalidArgument, "%s is not the name of a layer; snapshots are removed with: cowshed snapshot rm", name)
	}
	if s.containers != nil {
		return s.containerLayer(ctx, name)
	}
	v, err := s.driver.Backend().Stat(ctx, name)
	if errdefs.IsNotFound(err) {
		v, err = s.layerByPrefix(ctx, name)
	}
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		if _, imageErr := s.images.Get(name); imageErr == nil {
			err = failf(errdefs.ErrNotFound, "there is no layer %s, but an image; to remove that: cowshed rmi %[1]s", name)
		}
	}
	return v, err
}

// children lists the layers that were made from each layer.
func (s *store) children(cmd *cobra.Command) (map[string][]string, error) {
	children := make(map[string][]string)
	for v, err := range s.driver.Backend().Volumes(cmd.Context()) {
		if err != nil {
			return nil, err
		}
		if v.Parent != "" && !live.IsMoment(v.Name) { // snapshots go with their layer
			children[v.Parent] = append(children[v.Parent], v.Name)
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

// whyKept is err, for which a layer could not be removed, or where it has been mounted since that was made
// sure of.
func (s *store) whyKept(ctx context.Context, v cowcommon.Volume, err error) error {
	if errdefs.IsFailedPrecondition(err) {
		if mounted := s.checkUnmounted(ctx, v); errdefs.IsFailedPrecondition(mounted) {
			return mounted
		}
	}
	return err
}

// checkUnmounted reports where the layer is mounted as an error.
func (s *store) checkUnmounted(ctx context.Context, v cowcommon.Volume) error {
	targets, err := s.targets(ctx, v.Name)
	if err != nil {
		return err
	}
	if len(targets) > 0 && s.isContainer(v) {
		return failf(errdefs.ErrFailedPrecondition, "%s is mounted on %s; stop the container first", s.shown(v.Name), strings.Join(targets, ", "))
	}
	if len(targets) > 0 {
		return failf(errdefs.ErrFailedPrecondition, "layer %s is mounted on %s; unmount it with cowshed unmount %[1]s",
			s.shown(v.Name), strings.Join(targets, ", "))
	}
	return nil
}

// targets lists where a layer is mounted, the driver's own mount apart.
func (s *store) targets(ctx context.Context, name string) (targets []string, err error) {
	err = s.mounted(ctx, name, func(dir string) (err error) {
		targets, err = bindmount.Targets(dir, s.home(), s.driver.String())
		targets = slices.DeleteFunc(targets, func(target string) bool { return target == dir })
		return err
	})
	return targets, err
}
