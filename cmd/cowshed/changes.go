package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/moby/go-archive"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/printable"
)

type changesFlags struct {
	compareFlags
	json bool
	zero bool
}

// compareFlags say how two layers are compared.
type compareFlags struct {
	walk  bool
	whole bool
}

func (f *compareFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.walk, "walk", false, "look at every file instead of asking the filesystem for the changes")
	cmd.Flags().BoolVar(&f.whole, "whole", false, "compare with an empty tree: list everything")
}

func (f *compareFlags) way() cowcommon.Way {
	if f.walk {
		return cowcommon.Walk
	}
	return cowcommon.Auto
}

func newChangesCommand(a *app) *cobra.Command {
	f := changesFlags{}
	cmd := &cobra.Command{
		Use:   "changes NAME [PARENT]",
		Short: "List the changes of a layer",
		Long: `Lists the paths that a layer added (A), changed (C) or deleted (D), compared with the layer that it was made
from, or with PARENT. LAYER@SNAPSHOT stands for a snapshot in both places. The changes of a fork are those since it was
forked. A directory with a change in it is listed as changed.

Cowshed asks the filesystem where the two differ, and walks both if it cannot tell. --log-level info shows the way
taken. Names that are not plain text are printed in quotes, as "a\nb". With -0 names are printed as they are, and
each line ends in a zero byte instead.`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(args); err != nil {
				return err
			}
			if f.json && f.zero {
				return usagef("--json and --null exclude each other: give only one")
			}
			return a.withLayers(cmd, args, func(s *store) error { return s.changes(cmd, args, f) })
		},
		ValidArgsFunction: completeLayers(a, 2, true),
	}
	f.add(cmd)
	addJSON(cmd, &f.json)
	addContainers(a, cmd)
	cmd.Flags().BoolVarP(&f.zero, "null", "0", false, "end lines with a zero byte, and quote nothing")
	return cmd
}

// check refuses to compare with an empty tree and a layer at once.
func (f *compareFlags) check(args []string) error {
	if f.whole && len(args) > 1 {
		return usagef("--whole compares with an empty tree: give no PARENT")
	}
	return nil
}

// compare compares a layer as the arguments NAME [PARENT] say. The caller closes the result.
func (s *store) compare(cmd *cobra.Command, args []string, f compareFlags) (*cowcommon.Comparison, error) {
	v, err := s.Layer(cmd.Context(), args[0])
	if err != nil {
		return nil, err
	}
	named := ""
	if len(args) > 1 {
		named = args[1]
	}
	parent, err := s.Parent(cmd.Context(), v, named, f.whole)
	if err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	return s.Compare(cmd.Context(), v, parent, f.way())
}

func (s *store) changes(cmd *cobra.Command, args []string, f changesFlags) (err error) {
	c, err := s.compare(cmd, args, f.compareFlags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	out := bufio.NewWriter(cmd.OutOrStdout())
	if f.json {
		err = writeChangesJSON(out, c)
	} else {
		err = writeChanges(out, c.Changes, f.zero)
	}
	return errors.Join(err, out.Flush())
}

func writeChanges(w io.Writer, changes []archive.Change, zero bool) error {
	for _, change := range changes {
		line := change.Kind.String() + " " + printable.Path(change.Path) + "\n"
		if zero {
			line = change.Kind.String() + " " + change.Path + "\x00"
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

func writeChangesJSON(w io.Writer, c *cowcommon.Comparison) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(api.Changes{Native: c.Native, Reason: c.Reason, Changes: layerstore.Changes(c.Changes)})
}
