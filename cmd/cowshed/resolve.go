package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/snapshotter"
)

// completeLayers offers the names of layers, and of images if they are meant too, for the first n arguments.
func completeLayers(a *app, n int, images bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
		}
		if layer, _, ok := live.Cut(begun); ok {
			var names []cobra.Completion
			for _, snapshot := range a.snapshotNames(cmd, layer) {
				names = append(names, layer+"@"+snapshot)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		}
		return append(a.names(cmd.Context(), true, images), a.forkNames(cmd)...), cobra.ShellCompDirectiveNoFileComp
	}
}

// forkNames lists the forks of containers for completion, if the command takes containers.
func (a *app) forkNames(cmd *cobra.Command) (names []cobra.Completion) {
	if cmd.Flags().Lookup("config") == nil {
		return nil
	}
	a.setUpQuiet()
	c, err := a.daemonConfig(cmd)
	if err != nil {
		return nil
	}
	for _, name := range c.VolumeNames(cmd.Context()) {
		if !snapshotter.IsVolumeName(name) && !live.IsMoment(name) {
			names = append(names, string(layerref.Fork)+":"+name)
		}
	}
	return names
}

// snapshotNames lists the snapshots of a layer for completion. Those of a container need its daemon, which knows the volume of
// the container: opening the daemon's snapshots instead would clean up.
func (a *app) snapshotNames(cmd *cobra.Command, layer string) (names []cobra.Completion) {
	a.setUpQuiet()
	dirs, _ := filepath.Glob(filepath.Join(live.DirsIn(a.root), "*"))
	if cmd.Flags().Lookup("config") != nil && a.isReference(layer) {
		c, err := a.daemonConfig(cmd)
		if err != nil {
			return nil
		}
		if layer, err = askVolumeOf(cmd.Context(), c, layer); err != nil {
			return nil
		}
		dirs = c.LiveDirs()
	}
	for _, dir := range dirs {
		snapshots, _ := live.New(nil, dir, a.log).Snapshots(cmd.Context(), layer)
		for _, s := range snapshots {
			names = append(names, s.Name)
		}
	}
	return names
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
		list, _ := image.NewStore(filepath.Join(a.root, layerstore.ImagesDir), nil, a.log).List()
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
