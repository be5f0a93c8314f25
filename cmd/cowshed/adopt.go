package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/printable"
)

// adoptInfo is the output of adopt --json.
type adoptInfo struct {
	Name     string `json:"name"`
	Snapshot bool   `json:"snapshot"` // taken of a subvolume; otherwise the files were copied
}

func newAdoptCommand(a *app) *cobra.Command {
	size, asJSON := "", false
	cmd := &cobra.Command{
		Use:   "adopt DIR [NAME]",
		Short: "Make a layer of a directory",
		Long: `Makes a layer with the content of a directory, which stays as it is, and prints the layer's name. Without NAME
that is the name of the directory. A subvolume on the store's filesystem is snapshotted. Other directories are copied,
and share their data with the copy on the same filesystem. Nobody may change them meanwhile.`,
		Example: `  cowshed adopt ~/src/app app
  cowshed fork app try --count 8 --mount-at ../try-%d`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(s *store) error { return s.adopt(cmd, args, size, asJSON) })
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "how much the layer may hold, such as 10G")
	addJSON(cmd, &asJSON)
	return cmd
}

func (s *store) adopt(cmd *cobra.Command, args []string, size string, asJSON bool) error {
	dir, err := layerstore.RealPath(args[0])
	if err != nil {
		return err
	}
	name := filepath.Base(dir)
	if len(args) > 1 {
		name = args[1]
	}
	if err := layerstore.CheckNewLayer(name); err != nil {
		return err
	}
	if s.Root == dir || strings.HasPrefix(s.Root, strings.TrimSuffix(dir, "/")+"/") {
		return failf(errdefs.ErrInvalidArgument, "the store %s is in %s: adopt another directory, or use a store elsewhere", s.Root, dir)
	}
	opts := cowcommon.VolumeOptions{}
	if size != "" {
		bytes, err := layerstore.ParseLimit(size)
		if err != nil {
			return err
		}
		opts.Limit = s.Driver.Limit(bytes)
	}
	snapshot := false
	err = s.working(cmd, "adopt "+printable.Path(dir), func() (err error) {
		snapshot, err = s.Live.Adopt(cmd.Context(), name, dir, opts)
		return err
	})
	if err != nil {
		return asNotFound(err)
	}
	if asJSON {
		return printJSON(cmd, adoptInfo{Name: name, Snapshot: snapshot})
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
	return err
}
