package main

import (
	"slices"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
)

func newRmCommand(a *app) *cobra.Command {
	force, asJSON := false, false
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
			return a.withLayers(cmd, args, func(s *store) error { return s.rm(cmd, args, force, asJSON) })
		},
		ValidArgsFunction: completeLayers(a, -1, false),
	}
	addJSON(cmd, &asJSON)
	addContainers(a, cmd)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "ignore layers that do not exist, and remove layers that others were made from")
	return cmd
}

func (s *store) rm(cmd *cobra.Command, names []string, force, asJSON bool) error {
	var chosen []cowcommon.Volume
	for _, name := range names {
		v, err := s.LayerAlone(cmd.Context(), name)
		if errdefs.IsNotFound(err) && force {
			s.Log.Info("passed over", "name", name, "reason", err)
			continue
		}
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(chosen, func(c cowcommon.Volume) bool { return c.Name == v.Name }) {
			chosen = append(chosen, v)
		}
	}
	return printEach(cmd, asJSON, func(print func(name string) error) error {
		return s.Remove(cmd.Context(), chosen, force, func(v cowcommon.Volume) error { return print(s.Shown(v.Name)) })
	})
}
