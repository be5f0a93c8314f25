package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/moby/go-archive"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
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
				return usagef("--json and --null do not go together")
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
	v, err := s.layer(cmd.Context(), args[0])
	if err != nil {
		return nil, err
	}
	named := ""
	if len(args) > 1 {
		named = args[1]
	}
	parent, err := s.parent(cmd.Context(), v, named, f.whole)
	if err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	start := time.Now()
	c, err := s.driver.Compare(cmd.Context(), v.Name, parent, f.way())
	if err != nil {
		return nil, err
	}
	way, reason := "asked the filesystem", ""
	if !c.Native {
		way, reason = "walked", c.Reason
	}
	s.log.Info("compared", "layer", v.Name, "parent", orDash(parent), "way", way, "reason", reason,
		"changes", len(c.Changes), "took", time.Since(start).Round(10*time.Microsecond))
	return c, nil
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
		line := kindLetter(change.Kind) + " " + printable.Path(change.Path) + "\n"
		if zero {
			line = kindLetter(change.Kind) + " " + change.Path + "\x00"
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

func kindLetter(kind archive.ChangeType) string { return kind.String() }

// changeInfo is a change in the output of changes --json.
type changeInfo struct {
	Kind string `json:"kind"` // A, C or D
	Path string `json:"path"`
	// Bytes are those of the path, in base64, if it is not UTF-8 and path is therefore not all of it.
	Bytes []byte `json:"bytes,omitempty"`
}

func changeInfos(changes []archive.Change) []changeInfo {
	infos := make([]changeInfo, 0, len(changes))
	for _, change := range changes {
		info := changeInfo{Kind: kindLetter(change.Kind), Path: change.Path}
		if !utf8.ValidString(change.Path) {
			info.Bytes = []byte(change.Path)
		}
		infos = append(infos, info)
	}
	return infos
}

func writeChangesJSON(w io.Writer, c *cowcommon.Comparison) error {
	result := struct {
		Native  bool         `json:"native"`
		Reason  string       `json:"reason,omitempty"` // why both were walked
		Changes []changeInfo `json:"changes"`
	}{Native: c.Native, Reason: c.Reason, Changes: changeInfos(c.Changes)}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(result)
}
