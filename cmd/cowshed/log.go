package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/printable"
)

func newLogCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "log LAYER",
		Short: "Show the snapshots and forks of a layer",
		Long: `Shows the moments of a layer that are kept, oldest first: its snapshots, and the times at which it was forked,
with the forks and their moments below. Before that it removes forks that have expired.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args, func(s *store) error { return s.showLog(cmd, args[0], asJSON) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	addJSON(cmd, &asJSON)
	addContainers(a, cmd)
	return cmd
}

func (s *store) showLog(cmd *cobra.Command, name string, asJSON bool) error {
	s.Sweep(cmd.Context())
	v, err := s.LayerAlone(cmd.Context(), name)
	if err != nil {
		return err
	}
	l, err := s.History(cmd.Context(), v)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd, l)
	}
	return printLog(cmd.OutOrStdout(), l, "")
}

func printLog(w io.Writer, l api.Log, indent string) error {
	line := indent + l.Name
	if !l.Expires.IsZero() {
		line += "  until " + l.Expires.Local().Format(time.DateTime)
	}
	if _, err := fmt.Fprintln(w, line); err != nil {
		return err
	}
	for _, m := range l.Moments {
		line := indent + "  " + m.Time.Local().Format(time.DateTime)
		if m.Name != "" {
			line += "  @" + m.Name
		}
		if m.Message != "" {
			line += "  " + printable.Path(m.Message)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
		for _, fork := range m.Forks {
			if err := printLog(w, fork, indent+"    "); err != nil {
				return err
			}
		}
	}
	return nil
}
