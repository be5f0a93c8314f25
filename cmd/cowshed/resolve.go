package main

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/live"
)

// minPrefix is how much of the name of an image's layer has to be given at least.
const minPrefix = 6

// layer finds the layer that name stands for: one of that name, or the uppermost one of an image of that
// name, or the only layer of an image whose name starts so. LAYER@SNAPSHOT stands for the volume of a snapshot.
func (s *store) layer(ctx context.Context, name string) (cowcommon.Volume, error) {
	if s.containers != nil {
		return s.containerLayer(ctx, name)
	}
	v, err := s.driver.Backend().Stat(ctx, name)
	if err == nil || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		return v, err
	}
	if img, err := s.images.Get(name); err == nil {
		if img.Top() == "" {
			return v, failf(errdefs.ErrInvalidArgument, "image %s has no layers", name)
		}
		return s.driver.Backend().Stat(ctx, img.Top())
	}
	if layer, snapshot, ok := live.Cut(name); ok {
		return s.snapshotVolume(ctx, layer, snapshot)
	}
	if checkErr := cowcommon.CheckID(name); checkErr != nil {
		return v, checkErr
	}
	return s.layerByPrefix(ctx, name)
}

// snapshotVolume finds the volume of a snapshot.
func (s *store) snapshotVolume(ctx context.Context, layer, snapshot string) (cowcommon.Volume, error) {
	v, err := s.layerAlone(ctx, layer)
	if err != nil {
		return v, err
	}
	return s.live.Find(ctx, v.Name+"@"+snapshot)
}

func (s *store) layerByPrefix(ctx context.Context, prefix string) (found cowcommon.Volume, err error) {
	notFound := failf(errdefs.ErrNotFound, "no layer or image %s (cowshed ls lists layers, cowshed images lists images)", prefix)
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return found, notFound
	}
	for v, err := range s.driver.Backend().Volumes(ctx) {
		if err != nil {
			return found, err
		}
		if !image.IsLayerName(v.Name) || !strings.HasPrefix(v.Name, prefix) {
			continue
		}
		if found.Name != "" {
			return found, failf(errdefs.ErrInvalidArgument, "%s is the start of several layers' names", prefix)
		}
		found = v
	}
	if found.Name == "" {
		return found, notFound
	}
	return found, nil
}

// parent finds the other side of a comparison: the named layer, or else the layer's parent. whole stands for an empty
// tree.
func (s *store) parent(ctx context.Context, layer cowcommon.Volume, named string, whole bool) (string, error) {
	if whole {
		return "", nil
	}
	if named == "" {
		return s.live.Base(ctx, layer)
	}
	v, err := s.layer(ctx, named)
	return v.Name, err
}

// completeLayers offers the names of layers, and of images if they are meant too, for the first n arguments.
func completeLayers(a *app, n int, images bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names := a.names(cmd.Context(), true, images)
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeImages offers the names of images for the first n arguments.
func completeImages(a *app, n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.names(cmd.Context(), false, true), cobra.ShellCompDirectiveNoFileComp
	}
}

// names lists names for completion, where an error means that there is nothing to offer. It opens no driver, which
// would clean up, and mounts nothing.
func (a *app) names(ctx context.Context, layers, images bool) []cobra.Completion {
	a.setUpQuiet()
	var names []cobra.Completion
	if images {
		list, _ := image.NewStore(filepath.Join(a.root, imagesDir), nil, a.log).List()
		for _, img := range list {
			names = append(names, img.Name)
		}
	}
	if !layers {
		return names
	}
	for _, driver := range cowdriver.Registered() {
		if named := a.namedDriver(); named != "" && named != driver.Name {
			continue
		}
		list, _ := driver.Names(ctx, filepath.Join(a.root, driver.Name), a.storageOpts)
		for _, name := range list {
			if !image.IsPartial(name) && !live.IsMoment(name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// userOf names the image that a layer is part of, "" if it is part of none.
func (s *store) userOf(v cowcommon.Volume) (string, error) {
	users, err := s.images.Users()
	return users[v.Name], err
}
