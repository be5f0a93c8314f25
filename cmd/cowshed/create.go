package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerstore"
)

type createFlags struct {
	parent     string
	size       string
	mountLabel string
	rootStyle  string
	readWrite  bool
}

func newCreateCommand(a *app) *cobra.Command {
	f := createFlags{}
	cmd := &cobra.Command{
		Use:   "create [NAME]",
		Short: "Make a layer",
		Long: `Makes a layer and prints its name, which is made up if none is given. Without --parent the layer is
empty; with it, it is a writable copy of that layer, or of that image's uppermost one. The parent is then
sealed: it cannot be changed any more, unless it is mounted, in which case the copy is of this moment.

A layer for a container to write to is made with --read-write. It has the limit that the driver's option
size says (btrfs.size, zfs.size), unless --size says another. Likewise it has the root style of the option root_style,
unless --root-style says another. With the style shared, its tree is an overlay over the parent, and shares the
parent's page cache. Other layers have the style snapshot, unless --root-style says another.`,
		Example: `  cowshed create web --parent debian:12 --size 10G --read-write`,
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return a.with(cmd.Context(), func(s *store) error { return s.create(cmd, name, f) })
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.parent, "parent", "p", "", "layer or image to copy")
	flags.StringVar(&f.size, "size", "", "how much the layer may hold, such as 10G")
	flags.StringVar(&f.mountLabel, "mount-label", "", "SELinux label of the layer's files")
	flags.StringVar(&f.rootStyle, "root-style", "", "root of a copy: "+rootStyles)
	flags.BoolVar(&f.readWrite, "read-write", false, "a layer for a container, with the driver's default limit and root style")
	must(cmd.RegisterFlagCompletionFunc("parent", completeLayers(a, -1, true)))
	must(cmd.RegisterFlagCompletionFunc("root-style", completeRootStyles))
	return cmd
}

func (s *store) create(cmd *cobra.Command, name string, f createFlags) error {
	if name == "" {
		name = layerstore.RandomName()
	}
	if f.rootStyle == string(cowcommon.SharedRoot) && f.parent == "" {
		return usagef("--root-style %s needs --parent: an empty layer shares nothing", f.rootStyle)
	}
	opts := layerstore.CreateOptions{Size: f.size, MountLabel: f.mountLabel, RootStyle: f.rootStyle, ReadWrite: f.readWrite}
	if f.parent != "" {
		var err error
		if opts.Parent, err = s.Layer(cmd.Context(), f.parent); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	if err := s.Create(cmd.Context(), name, opts); err != nil {
		return err
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), name)
	return err
}

// rootStyles lists the root styles, for the help of flags.
const rootStyles = string(cowcommon.SnapshotRoot + " or " + cowcommon.SharedRoot)

// completeRootStyles offers the root styles.
var completeRootStyles = cobra.FixedCompletions([]string{string(cowcommon.SnapshotRoot), string(cowcommon.SharedRoot)}, cobra.ShellCompDirectiveNoFileComp)
