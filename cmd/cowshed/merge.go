package main

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

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

// mergeInfo is the output of merge --json.
type mergeInfo struct {
	Into      string         `json:"into"`
	Changes   []changeInfo   `json:"changes"`
	Conflicts []conflictInfo `json:"conflicts"`
	Before    string         `json:"before,omitempty"` // the snapshot with the content of before
}

// conflictInfo is a conflict in the output of merge --json.
type conflictInfo struct {
	Path   string `json:"path"`
	Fork   string `json:"fork"`  // A, C or D
	Layer  string `json:"layer"` // A, C or D
	Reason string `json:"reason,omitempty"`
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
			if err := f.check(); err != nil {
				return err
			}
			return a.withLayers(cmd, f.layers(args[0]), func(s *store) error { return s.merge(cmd, args[0], f) })
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

func (f *mergeFlags) check() error {
	if f.ours && f.theirs {
		return usagef("--ours and --theirs do not go together")
	}
	for i, p := range f.force {
		if !strings.HasPrefix(p, "/") {
			return usagef("--force-path %q: say a path from the layer's root, such as /etc/passwd", p)
		}
		f.force[i] = path.Clean(p)
	}
	return nil
}

// resolve decides about a conflict.
func (f *mergeFlags) resolve(c live.Conflict) live.Resolution {
	within := func(top string) bool {
		return c.Path == top || strings.HasPrefix(c.Path, strings.TrimSuffix(top, "/")+"/")
	}
	switch {
	case f.theirs, slices.ContainsFunc(f.force, within):
		return live.Theirs
	case f.ours:
		return live.Ours
	}
	return live.Refuse
}

func (s *store) merge(cmd *cobra.Command, fork string, f mergeFlags) error {
	v, err := s.layerAlone(cmd.Context(), fork)
	if err != nil {
		return err
	}
	m, err := s.live.ForkedFrom(cmd.Context(), v)
	if err != nil {
		return err
	}
	into := f.into
	if into == "" {
		into = m.Layer
	}
	target, err := s.layerOf(cmd.Context(), into)
	if err != nil {
		return fmt.Errorf("layer to merge into: %w", err)
	}
	if !f.live {
		if err := s.checkUnmounted(cmd.Context(), target); err != nil {
			return err
		}
	}
	merged, err := s.live.Merge(cmd.Context(), v.Name, live.MergeOptions{Into: target.Name, Live: f.live, Resolve: f.resolve})
	var conflict *live.ConflictError
	if errors.As(err, &conflict) {
		if listErr := listConflicts(cmd, s.shown(target.Name), conflict.Conflicts, f.json); listErr != nil {
			return errors.Join(err, listErr)
		}
	}
	if err != nil {
		return err
	}
	if f.json {
		info := mergeInfo{Into: s.shown(merged.Into), Before: merged.Before.Name, Changes: changeInfos(merged.Changes), Conflicts: conflictInfos(merged.Conflicts)}
		return printJSON(cmd, info)
	}
	if merged.Before.Name == "" {
		s.log.Info("there is nothing to merge", "fork", v.Name, "layer", merged.Into)
		return nil
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), merged.Before.Name)
	return err
}

func conflictInfos(conflicts []live.Conflict) []conflictInfo {
	infos := make([]conflictInfo, 0, len(conflicts))
	for _, c := range conflicts {
		infos = append(infos, conflictInfo{Path: c.Path, Fork: kindLetter(c.Fork), Layer: kindLetter(c.Layer), Reason: c.Reason})
	}
	return infos
}

func listConflicts(cmd *cobra.Command, into string, conflicts []live.Conflict, asJSON bool) error {
	infos := conflictInfos(conflicts)
	if asJSON {
		return printJSON(cmd, mergeInfo{Into: into, Changes: []changeInfo{}, Conflicts: infos})
	}
	for _, c := range infos {
		line := c.Fork + c.Layer + " " + printable.Path(c.Path)
		if c.Reason != "" {
			line += " (" + printable.Path(c.Reason) + ")"
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), line); err != nil {
			return err
		}
	}
	return nil
}
