package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/quota"
)

func newLimitCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "limit NAME SIZE|none",
		Short: "Limit how much a layer or a container may hold",
		Long: `Sets or removes the limit of a layer. Over it, writing fails with "disk quota exceeded" and deleting still
works. It counts the data that the layer adds to its parent's, or with the driver's option quota_scope=total all
that the layer holds. A layer of an image gets no limit, but layers made from it do. On btrfs the first limit turns
quotas on, in the mode of the option btrfs.quota.

The limit of a container changes while the container runs. A limit below the present size is refused then, and a limit
cannot be removed.`,
		Example: `  cowshed limit web 20G
  cowshed limit web none
  cowshed limit docker:web 20G`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, err := layerstore.ParseLimitOrNone(args[1])
			if err != nil {
				return err
			}
			if ref, err := layerref.Parse(args[0]); a.isReference(args[0]) && (err != nil || ref.Kind != layerref.Fork) {
				if err != nil {
					return err
				}
				return a.limitContainer(cmd, ref, bytes)
			}
			return a.withLayers(cmd, args[:1], func(s *store) error { return s.limit(cmd, args[0], bytes) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	addContainers(a, cmd)
	return cmd
}

// limit sets the limit of a layer; 0 bytes removes it.
func (s *store) limit(cmd *cobra.Command, name string, bytes uint64) error {
	v, err := s.Layer(cmd.Context(), name)
	if err != nil {
		return err
	}
	return s.SetLimit(cmd.Context(), v, name, bytes)
}

func newUsageCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "usage NAME...",
		Short: "Show how much layers hold",
		Long: `Shows how much each layer holds itself, in addition to the layer that it was made from. With quotas on, the
filesystem counts that, at no cost. Else it is the sum of the sizes of the files that were added or changed.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args, func(s *store) error { return s.usage(cmd, args, asJSON) })
		},
		ValidArgsFunction: completeLayers(a, -1, true),
	}
	addJSON(cmd, &asJSON)
	addContainers(a, cmd)
	return cmd
}

func (s *store) usage(cmd *cobra.Command, names []string, asJSON bool) error {
	infos := make([]api.Usage, 0, len(names))
	for _, name := range names {
		v, err := s.Layer(cmd.Context(), name)
		if err != nil {
			return err
		}
		usage, err := s.Usage(cmd.Context(), v)
		if err != nil {
			return err
		}
		infos = append(infos, usage)
	}
	if asJSON {
		return printJSON(cmd, infos)
	}
	rows := make([][]string, 0, len(infos))
	for _, u := range infos {
		rows = append(rows, []string{layerstore.ShortName(u.Name), quota.FormatSize(u.Bytes), sizeOrDash(u.Limit), percentOf(u)})
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "USAGE", "LIMIT", "FULL"}, rows)
}

func sizeOrDash(bytes uint64) string {
	if bytes == 0 {
		return "-"
	}
	return quota.FormatSize(bytes)
}

func percentOf(u api.Usage) string {
	if u.Limit == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(u.Bytes)/float64(u.Limit))
}
