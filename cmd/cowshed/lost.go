package main

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/snapshotter"
)

func newLostCommand(a *app) *cobra.Command {
	f := &daemonFlags{app: a}
	cmd := &cobra.Command{
		Use:   "lost",
		Short: "List, give back or remove volumes that the daemon's metadata does not know",
		Long: `When cowshed serve starts and finds volumes that its metadata does not know, it keeps them: the metadata may be
lost, damaged, or older than the volumes, as after the root filesystem was rolled back. containerd does not see them.

To give a volume back or remove it, stop the daemon first. Containers go on running meanwhile.`,
		Example: `  cowshed lost ls
  systemctl stop cowshed.service
  cowshed lost restore s-ABCDEFGHIJKLMNOPQRSTUVWXYZ.web
  cowshed lost rm s-BCDEFGHIJKLMNOPQRSTUVWXYZA.test`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&f.configFile, "config", daemon.DefaultConfigFile, "configuration `FILE` of cowshed serve")
	cmd.AddCommand(f.newList(), f.newRestore(), f.newRemove())
	return cmd
}

// daemonFlags are the flags of commands that need the configuration of the daemon.
type daemonFlags struct {
	app        *app
	configFile string
}

// config is the configuration of the daemon.
func (f *daemonFlags) config(cmd *cobra.Command) (daemon.Config, error) {
	c, err := (&serveFlags{configFile: f.configFile}).read(cmd.Flags())
	if err != nil {
		return daemon.Config{}, err
	}
	f.app.override(cmd.Flags(), &c)
	f.app.root = c.Root
	return c, nil
}

// with calls do with the snapshotter of a daemon that does not run.
func (f *daemonFlags) with(cmd *cobra.Command, do func(*snapshotter.Snapshotter) error) error {
	c, err := f.config(cmd)
	if err != nil {
		return err
	}
	if err := f.app.mountEmbedded(cmd.Context()); err != nil {
		return err
	}
	return daemon.WithSnapshotter(cmd.Context(), c, f.app.log, do)
}

func (f *daemonFlags) newList() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List lost volumes",
		Long: `Lists the volumes that are lost. KEY is the key of the volume's former snapshot, if it is known. MADE FOR is the key
that the volume was made with, which for a committed snapshot differs from its name.

While the daemon runs, the list has the volumes that were lost at its start.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			lost, err := f.list(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, lost)
			}
			return printLost(cmd, lost)
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func (f *daemonFlags) list(cmd *cobra.Command) (lost []snapshotter.Lost, err error) {
	err = f.with(cmd, func(s *snapshotter.Snapshotter) error {
		lost = s.Lost()
		return nil
	})
	if !errdefs.IsFailedPrecondition(err) {
		return lost, err
	}
	c, configErr := f.config(cmd)
	if configErr != nil {
		return nil, configErr
	}
	reported, reportErr := daemon.ReportedLost(c)
	if errors.Is(reportErr, fs.ErrNotExist) {
		return nil, err
	}
	return reported, reportErr
}

func printLost(cmd *cobra.Command, lost []snapshotter.Lost) error {
	var rows [][]string
	for _, l := range lost {
		state := "writable"
		if l.Sealed {
			state = "sealed"
		}
		rows = append(rows, []string{l.Volume, state, l.Created.Format(time.DateTime), printable.Path(orDash(l.Key)), printable.Path(orDash(l.Made))})
	}
	return table(cmd.OutOrStdout(), []string{"VOLUME", "STATE", "CREATED", "KEY", "MADE FOR"}, rows)
}

func (f *daemonFlags) newRestore() *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "restore VOLUME [KEY]",
		Short: "Make a lost volume a snapshot again",
		Long: `Makes a lost volume a snapshot again, with its former key, or KEY if that is not known. A writable volume becomes an
active snapshot, and a sealed one a committed snapshot. Restore a volume's parent first, if that is lost too.

containerd removes snapshots that its own metadata does not know. If that was rolled back too, copy out the data that
you need before you start the daemon: below ROOT/containerd on btrfs each volume is a directory.`,
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if all {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.RangeArgs(1, 2)(cmd, args)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd, func(s *snapshotter.Snapshotter) error {
				if all {
					return restoreAll(cmd, s)
				}
				return s.Restore(cmd.Context(), args[0], append(args, "")[1])
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "restore each volume whose key is known, sealed ones first")
	return cmd
}

func restoreAll(cmd *cobra.Command, s *snapshotter.Snapshotter) error {
	var errs []error
	for _, sealed := range []bool{true, false} {
		for _, l := range s.Lost() {
			if l.Sealed != sealed || l.Key == "" {
				continue
			}
			if err := s.Restore(cmd.Context(), l.Volume, ""); err != nil {
				errs = append(errs, err)
			} else if _, err := fmt.Fprintln(cmd.OutOrStdout(), l.Volume); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (f *daemonFlags) newRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm VOLUME...",
		Short: "Destroy lost volumes",
		Long:  `Destroys lost volumes with all that is in them. This cannot be undone.`,
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd, func(s *snapshotter.Snapshotter) error {
				for _, volume := range args {
					if err := s.Discard(cmd.Context(), volume); err != nil {
						return err
					}
					if _, err := fmt.Fprintln(cmd.OutOrStdout(), volume); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// repairMetadata makes the metadata of a daemon that does not run anew, if it is damaged.
func (h hostCheck) repairMetadata(cmd *cobra.Command) {
	const check = "metadata"
	done, err := daemon.Repair(cmd.Context(), h.config, h.app.log)
	switch {
	case err != nil:
		h.add(fail, check, "", "%v", err)
	case done == nil:
		h.add(ok, check, "", "it is not damaged")
	default:
		h.add(warn, check, "start the daemon, and see cowshed lost ls for volumes that belong to nobody",
			"it was damaged, and is made anew of %d readable snapshots and %d that their volumes describe; the damaged file is %s",
			done.Read, done.Rebuilt, done.Aside)
	}
}

// lost reports volumes that the daemon keeps.
func (h hostCheck) lost() {
	const check = "volumes"
	lost, err := daemon.ReportedLost(h.config)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		h.add(warn, check, "", "%v", err)
	case len(lost) > 0:
		h.add(warn, check, "see: cowshed lost ls",
			"%d volumes are lost: the daemon's metadata does not know them, and they are kept, such as %s", len(lost), lost[0].Volume)
	default:
		h.add(ok, check, "", "the daemon's metadata knows all of them")
	}
}
