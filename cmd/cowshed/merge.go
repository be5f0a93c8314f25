package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/live"
)

type mergeFlags struct {
	into   string
	live   bool
	ours   bool
	theirs bool
	force  []string
	json   bool
}

func newMergeCommand(a *app) *cobra.Command {
	f := mergeFlags{}
	cmd := &cobra.Command{
		Use:   "merge FORK",
		Short: "Apply the changes of a fork to the layer that it came from",
		Long: `Applies the changes of a fork, since it was forked, to the layer from which it was forked, or to the layer --into. Prints
the name of a snapshot with the content of before. The layer may have changed too. The fork stays as it is.

A path that both have changed in different ways is a conflict. Conflicts are listed, with the kinds of both changes (A
added, C changed, D deleted), first that of the fork. Nothing is applied then, and the exit code is 9. --theirs takes the
fork's state of such paths, --ours keeps the layer's, and --force-path takes the fork's below one path.

All changes are applied in one step. A layer that is in use is left as it is, unless --live says to change its files one
by one.`,
		Example: `  cowshed merge web-test
  cowshed merge try-3 --into src --force-path /src/main.c`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts, err := f.options()
			if err != nil {
				return err
			}
			return a.withLayers(cmd, f.layers(args[0]), func(s *store) error { return s.merge(cmd, args[0], f.into, opts, f.json) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.into, "into", "", "layer that gets the changes")
	flags.BoolVar(&f.live, "live", false, "change the files in place, also while the layer is in use")
	flags.BoolVar(&f.ours, "ours", false, "keep the layer's state where both have changed")
	flags.BoolVar(&f.theirs, "theirs", false, "take the fork's state where both have changed")
	flags.StringArrayVar(&f.force, "force-path", nil, "take the fork's state of this path and below (repeatable)")
	addJSON(cmd, &f.json)
	addContainers(a, cmd)
	must(cmd.RegisterFlagCompletionFunc("into", completeLayers(a, -1, false)))
	return cmd
}

// layers are the layers that the command names.
func (f *mergeFlags) layers(fork string) []string {
	if f.into == "" {
		return []string{fork}
	}
	return []string{fork, f.into}
}

// options checks the flags.
func (f *mergeFlags) options() (layerstore.MergeOptions, error) {
	opts := layerstore.MergeOptions{Live: f.live, Strategy: api.Refuse}
	switch {
	case f.ours && f.theirs:
		return opts, usagef("--ours and --theirs exclude each other: give only one")
	case f.ours:
		opts.Strategy = api.Ours
	case f.theirs:
		opts.Strategy = api.Theirs
	}
	var err error
	if opts.Paths, err = layerstore.CleanPaths(f.force); err != nil {
		return opts, usagef("--force-path %w", err)
	}
	return opts, nil
}

func (s *store) merge(cmd *cobra.Command, fork, into string, opts layerstore.MergeOptions, asJSON bool) error {
	v, err := s.LayerAlone(cmd.Context(), fork)
	if err != nil {
		return err
	}
	target, err := s.MergeTarget(cmd.Context(), v, into)
	if err != nil {
		return err
	}
	var merged api.Merge
	err = s.working(cmd, "merge "+printable.Path(fork), func() (err error) {
		merged, err = s.Merge(cmd.Context(), v, target, opts)
		return err
	})
	var conflict *live.ConflictError
	if errors.As(err, &conflict) {
		if listErr := listConflicts(cmd, s.Shown(target.Name), layerstore.Conflicts(conflict.Conflicts), asJSON); listErr != nil {
			return errors.Join(err, listErr)
		}
	}
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd, merged)
	}
	if merged.Before == "" {
		s.Log.Info("there is nothing to merge", "fork", v.Name, "layer", merged.Into)
		return nil
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), merged.Before)
	return err
}

func listConflicts(cmd *cobra.Command, into string, conflicts []api.Conflict, asJSON bool) error {
	if asJSON {
		return printJSON(cmd, api.Merge{Into: into, Changes: []api.Change{}, Conflicts: conflicts})
	}
	for _, c := range conflicts {
		line := string(c.Fork+c.Layer) + " " + printable.Path(c.Path)
		if c.Reason != "" {
			line += " (" + printable.Path(c.Reason) + ")"
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), line); err != nil {
			return err
		}
	}
	return nil
}
