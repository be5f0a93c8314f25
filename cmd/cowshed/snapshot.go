package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/live"
)

// snapshotFlags are the flags of snapshot.
type snapshotFlags struct {
	message string
	every   time.Duration
	keep    int
	hooks   live.Hooks
	json    bool
}

// hookTimeout is how long a hook may take unless the user says otherwise.
const hookTimeout = 30 * time.Second

func newSnapshotCommand(a *app) *cobra.Command {
	f := snapshotFlags{}
	cmd := &cobra.Command{
		Use:   "snapshot LAYER [NAME]",
		Short: "Keep a layer as it is now, in use or not",
		Long: `Keeps the content of a layer as it is at this moment, read-only, and prints the name of the snapshot. The name is
made up if none is given. The layer may be in use; it stays writable. Programs that are writing see nothing of it, so
the snapshot is like the disk after a power cut.

For programs that need more, --pre and --post are commands that are run on the host around the snapshot, by /bin/sh and
as root. Their environment has COWSHED_HOOK (pre or post), COWSHED_LAYER (the volume), COWSHED_REFERENCE (LAYER as it is
given here), and COWSHED_PID: the first process of a container that runs. If --pre fails or takes too long, there is no
snapshot, and --post is run all the same. If this command is killed in between, cowshed serve runs --post
within a minute, or at its next start. Or the next snapshot with hooks runs it first.

With --in-container, both are run in the container of LAYER instead, by its /bin/sh, with the user, rights and environment of its
first process. That goes for Docker, Kubernetes, nerdctl and containerd. Their output is lost, and their exit status counts. If the
container does not run, neither is run. If containerd knows no such container and LAYER is in use, there is no snapshot.

With --every, this command takes no snapshot itself. It makes cowshed serve with the same root take them from now on, at
full periods in UTC, such as each full hour. The last --keep of these stay, and all from which layers were
made or that are in use. A layer may have several schedules with different periods; one with the same period is
replaced. A schedule goes with its layer.

Other commands take a snapshot as LAYER@NAME, such as: cowshed changes web web@before. A snapshot goes with its layer.`,
		Example: `  cowshed snapshot web before -m "before the upgrade"
  cowshed changes web web@before
  cowshed rollback web before
  cowshed snapshot web --every 1h --keep 24
  cowshed snapshot docker:db --in-container --pre freeze --post thaw`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 1 {
				name = args[1]
			}
			if cmd.Flags().Changed("every") {
				if name != "" {
					return usagef("%s: snapshots that are taken by --every have names of their own", name)
				}
				return a.withLayers(cmd, args, func(s *store) error { return s.schedule(cmd, args[0], f) })
			}
			if cmd.Flags().Changed("keep") {
				return usagef("--keep %d: say --every too", f.keep)
			}
			return a.withLayers(cmd, args[:1], func(s *store) error { return s.snapshot(cmd, args[0], name, f) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.message, "message", "m", "", "text that is listed with the snapshot")
	flags.DurationVar(&f.every, "every", 0, "have a snapshot taken by cowshed serve each time that this `PERIOD` has passed, in whole minutes, such as 1h")
	flags.IntVar(&f.keep, "keep", defaultKeep, "with --every: how many of these snapshots stay")
	flags.StringVar(&f.hooks.Pre, "pre", "", "`COMMAND` that is run before the snapshot, and has to succeed")
	flags.StringVar(&f.hooks.Post, "post", "", "`COMMAND` that is run afterwards, also if --pre has failed")
	flags.BoolVar(&f.hooks.InContainer, "in-container", false, "run --pre and --post in the container, and not on the host")
	flags.DurationVar(&f.hooks.Timeout, "hook-timeout", hookTimeout, "how long each of these may take")
	addJSON(cmd, &f.json)
	addContainers(a, cmd)
	cmd.AddCommand(newSnapshotLsCommand(a), newSnapshotRmCommand(a), newSnapshotMountCommand(a), newSnapshotSchedulesCommand(a), newSnapshotUnscheduleCommand(a))
	return cmd
}

func (s *store) snapshot(cmd *cobra.Command, layer, name string, f snapshotFlags) error {
	v, err := s.LayerOf(cmd.Context(), layer)
	if err != nil {
		return err
	}
	f.hooks.Reference = layer
	m, err := s.Live.Snapshot(cmd.Context(), v.Name, name, live.SnapshotOptions{Message: f.message, Hooks: f.hooks})
	if m.Name == "" {
		return err
	}
	return errors.Join(err, s.printSnapshot(cmd, m, f.json)) // it is there, also if --post has failed
}

func (s *store) printSnapshot(cmd *cobra.Command, m live.Moment, asJSON bool) error {
	if asJSON {
		info, err := s.DescribeSnapshot(cmd.Context(), m)
		if err != nil {
			return err
		}
		return printJSON(cmd, info)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), m.Name)
	return err
}

func newSnapshotLsCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "ls LAYER",
		Short: "List the snapshots of a layer",
		Long: `Lists the snapshots of a layer, oldest first. WRITTEN is the data that the filesystem counts for the snapshot's own volume.
It is close to nothing for a snapshot of a layer: its data counts for the layer that wrote it. For the content of before a
rollback or a merge, it is the data that the layer had written until then. It does not say how much space a removal frees, which
depends on the data that the layer and its other snapshots still have. No quotas: -.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args, func(s *store) error { return s.snapshots(cmd, args[0], asJSON) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	addJSON(cmd, &asJSON)
	addContainers(a, cmd)
	return cmd
}

func (s *store) snapshots(cmd *cobra.Command, layer string, asJSON bool) error {
	s.Sweep(cmd.Context())
	v, err := s.LayerAlone(cmd.Context(), layer)
	if err != nil {
		return err
	}
	infos, err := s.Snapshots(cmd.Context(), v)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd, infos)
	}
	rows := make([][]string, 0, len(infos))
	for _, i := range infos {
		rows = append(rows, []string{i.Name, i.Time.Local().Format(time.DateTime), usageText(i.Usage), orDash(printable.Path(i.Message))})
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "TIME", "WRITTEN", "MESSAGE"}, rows)
}

func newSnapshotRmCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "rm LAYER NAME...",
		Short: "Remove snapshots of a layer",
		Long:  `Removes snapshots of a layer. Layers that were forked from a snapshot stay as they are.`,
		Args:  usageArgs(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args[:1], func(s *store) error {
				v, err := s.LayerAlone(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return printEach(cmd, asJSON, func(print func(name string) error) error {
					for _, name := range args[1:] {
						err := s.Live.RemoveSnapshot(cmd.Context(), v.Name, name)
						if err == nil {
							err = print(name)
						}
						if err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
		ValidArgsFunction: completeSnapshots(a, -1),
	}
	addJSON(cmd, &asJSON)
	addContainers(a, cmd)
	return cmd
}

func newSnapshotMountCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mount LAYER NAME [TARGET]",
		Short: "Show a snapshot's tree at a directory",
		Long: `Mounts a snapshot read-only on the directory TARGET, or on one of its own in the store, and prints the path.
cowshed unmount LAYER@NAME undoes that.`,
		Args: usageArgs(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			target := ""
			if len(args) > 2 {
				target = args[2]
			}
			return a.withLayers(cmd, args[:1], func(s *store) error { return s.mount(cmd, args[0]+"@"+args[1], target, true) })
		},
		ValidArgsFunction: completeSnapshots(a, 2),
	}
	addContainers(a, cmd)
	return cmd
}

func newRollbackCommand(a *app) *cobra.Command {
	opts, asJSON := live.RollbackOptions{}, false
	cmd := &cobra.Command{
		Use:   "rollback LAYER SNAPSHOT",
		Short: "Make a layer as one of its snapshots is",
		Long: `Gives a layer the content of one of its snapshots, in one step. Prints the name of a new snapshot, which has
the content of before. All other snapshots stay. Without --live a layer that is in use is left as it is.

With --live, the files that differ are changed one by one, also in a layer that is in use. Programs see them change. A
crash in the middle leaves a part of the changes, and the snapshot of before.`,
		Example: `  cowshed rollback web before`,
		Args:    usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args[:1], func(s *store) error { return s.rollback(cmd, args[0], args[1], opts, asJSON) })
		},
		ValidArgsFunction: completeSnapshots(a, 2),
	}
	addContainers(a, cmd)
	cmd.Flags().BoolVar(&opts.Live, "live", false, "change the files in place, also while the layer is in use")
	addJSON(cmd, &asJSON)
	return cmd
}

func (s *store) rollback(cmd *cobra.Command, layer, snapshot string, opts live.RollbackOptions, asJSON bool) error {
	v, err := s.LayerOf(cmd.Context(), layer)
	if err != nil {
		return err
	}
	var before live.Moment
	err = s.working(cmd, "roll back "+printable.Path(layer), func() (err error) {
		before, err = s.Rollback(cmd.Context(), v, snapshot, opts)
		return err
	})
	if err != nil {
		return err
	}
	return s.printSnapshot(cmd, before, asJSON)
}

// completeSnapshots offers layers for the first argument, and snapshots of that layer for the next, n in all.
func completeSnapshots(a *app, n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return append(a.names(cmd.Context(), true, false), a.forkNames(cmd)...), cobra.ShellCompDirectiveNoFileComp
		case n >= 0 && len(args) >= n:
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.snapshotNames(cmd, args[0]), cobra.ShellCompDirectiveNoFileComp
	}
}
