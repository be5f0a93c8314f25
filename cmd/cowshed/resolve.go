package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

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
