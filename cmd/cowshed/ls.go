package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/quota"
)

type lsFlags struct {
	json      bool
	namesOnly bool
	noTrunc   bool
	forks     bool
}

func newLsCommand(a *app) *cobra.Command {
	f := lsFlags{}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List layers",
		Long: `Lists layers with their parent, whether they are sealed, and their limit. With quotas on, the filesystem counts the
size of their own data, which is listed too. Names of images' layers are cut to 12 digits; other commands
accept these too.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.forks {
				return a.withContainers(cmd, nil, func(s *store) error { return s.ls(cmd, f) })
			}
			return a.with(cmd.Context(), func(s *store) error { return s.ls(cmd, f) })
		},
	}
	addJSON(cmd, &f.json)
	addContainers(a, cmd)
	cmd.Flags().BoolVar(&f.forks, "forks", false, "list the forks of containers instead")
	cmd.Flags().BoolVarP(&f.namesOnly, "names", "n", false, "print names only")
	cmd.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "print names in full")
	return cmd
}

func (s *store) ls(cmd *cobra.Command, f lsFlags) error {
	s.Sweep(cmd.Context())
	layers, err := s.List(cmd.Context(), nil)
	if err != nil {
		return err
	}
	switch {
	case f.json:
		return printJSON(cmd, layers)
	case f.namesOnly:
		for _, l := range layers {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), l.Name); err != nil {
				return err
			}
		}
		return nil
	}
	shown := layerstore.ShortName
	if f.noTrunc {
		shown = func(name string) string { return name }
	}
	rows := make([][]string, 0, len(layers))
	for _, l := range layers {
		rows = append(rows, []string{
			shown(l.Name), orDash(shown(shownParent(l))), strconv.FormatBool(l.Sealed), limitText(l), usageText(l.Usage),
			l.Created.Local().Format(time.DateTime),
		})
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "PARENT", "SEALED", "LIMIT", "USAGE", "CREATED"}, rows)
}

// shownParent is the parent as people are shown it: the moment of a fork is that of a layer.
func shownParent(l api.Layer) string {
	if l.ForkOf != "" {
		return l.ForkOf
	}
	return l.Parent
}

func limitText(l api.Layer) string {
	switch l.LimitScope {
	case "", quota.ScopeLayer.String():
		if l.Limit == 0 {
			return "-"
		}
		return quota.FormatSize(l.Limit)
	}
	return quota.FormatSize(l.Limit) + " " + l.LimitScope
}

func usageText(bytes *uint64) string {
	if bytes == nil {
		return "-"
	}
	return quota.FormatSize(*bytes)
}
