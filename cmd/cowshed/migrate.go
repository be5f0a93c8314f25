package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/migrate"
)

// Targets of a migration, by the names that --to knows.
const (
	toStore      = "store"
	toPlugin     = "plugin"
	toContainerd = "containerd"
)

// migrateFlags are the flags of migrate and its subcommands.
type migrateFlags struct {
	from, driver, dataset string
	to                    string
	state                 string
	dockerRoot            string
	pluginName            string
	address, namespace    string
	snapshotter           string
	noVerify              bool
}

func newMigrateCommand(a *app) *cobra.Command {
	f := &migrateFlags{}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move images and containers of Docker or Podman to Cowshed",
		Long: `Moves the images and containers of an old graph root to Cowshed. Three kinds of root can be moved:

    /var/lib/docker             of Docker since 1.10, with the drivers btrfs, zfs, overlay2, fuse-overlayfs, vfs and aufs
    /var/lib/containers/storage of Podman, CRI-O and Buildah, with the drivers overlay, btrfs, zfs and vfs
    /var/lib/docker             of Docker before 0.7

They come to one of three places:

    --to store       layers and images of the command cowshed, in --root
    --to plugin      the graph driver plugin of Docker 20.10 to 26; images and containers keep their IDs
    --to containerd  images and snapshots of containerd; in the namespace moby those of Docker 29 and later

The layers and images of the root stay as they are until finish removes them. With --to plugin, and in the namespace moby,
run changes the configurations of Docker's containers in its last step. undo restores them.

In one btrfs or ZFS pool, volumes are cloned. On one btrfs, the files of other drivers share their data. Otherwise data is
copied. On ZFS, run takes snapshots of the old volumes, which undo destroys.

Stop the engine that works on the root first. Then go these steps:

    cowshed migrate plan    shows the things that would come along, and how
    cowshed migrate run     moves them, and compares each layer with its tar or its source
    cowshed migrate verify  compares everything once more
    cowshed migrate undo    removes everything that run has made
    cowshed migrate finish  removes the old root

run can be stopped at any time, and goes on when it is called again. A journal in --state keeps its steps.`,
		Example: `  cowshed migrate plan --from /var/lib/docker --to store
  cowshed migrate run --from /var/lib/docker --to store
  cowshed migrate finish --from /var/lib/docker --to store --yes`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.from, "from", "", "directory of the old root; undo and finish know it by their journal")
	flags.StringVar(&f.driver, "driver", "", "driver of the old root, if it has several; the driver of a store is that of "+driverEnv)
	flags.StringVar(&f.dataset, "dataset", "", "dataset with the layers of an old root on ZFS, if it is not that of the root (Docker's option zfs.fsname)")
	flags.StringVar(&f.to, "to", "", "where images and containers come to: store, plugin or containerd")
	flags.StringVar(&f.state, "state", "", "directory of the journal; if not given, \"migration\" beside the new layers")
	flags.StringVar(&f.dockerRoot, "docker-root", "", "Docker's root for plugin, and for containers in containerd; if not given, the old root if it is of Docker since 1.10")
	flags.StringVar(&f.pluginName, "plugin-name", "cowshed", "name of the plugin: docker_plugin in the daemon's configuration")
	flags.StringVar(&f.address, "containerd-address", daemon.Default().ContainerdAddress, "socket of containerd")
	flags.StringVar(&f.namespace, "namespace", "moby", "namespace of containerd: moby for Docker, k8s.io for Kubernetes, default for nerdctl")
	flags.StringVar(&f.snapshotter, "snapshotter", "cowshed", "containerd's name of Cowshed")
	targets := []string{toStore, toPlugin, toContainerd}
	must(cmd.RegisterFlagCompletionFunc("to", cobra.FixedCompletions(targets, cobra.ShellCompDirectiveNoFileComp)))
	cmd.AddCommand(newMigratePlan(a, f), newMigrateRun(a, f), newMigrateVerify(a, f), newMigrateUndo(a, f), newMigrateFinish(a, f))
	return cmd
}

func newMigratePlan(a *app, f *migrateFlags) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show the things that run would move, and how",
		Long: `Shows which images and containers would come along, how their data would come, and how much space and time that takes.
It changes nothing, and can be called while the engine runs.

It ends with the exit code that run would end with.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.migrate(cmd.Context(), f, func(m *migration) error { return m.plan(cmd, asJSON) })
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func newMigrateRun(a *app, f *migrateFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Move images and containers",
		Long: `Makes all layers, images and containers of the old root in the new place. It compares each
layer with its tar, or with its source if the layer has none.
The old root's layers and images stay as they are. A run that was stopped goes on where it was.

Nothing is changed if a program works on the old root, or if a name in the new place is taken by something else. If
single images or containers cannot come along, the others do.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.migrate(cmd.Context(), f, func(m *migration) error { return m.run(cmd) })
		},
	}
	cmd.Flags().BoolVar(&f.noVerify, "no-verify", false, "do not compare layers with their sources, which reads all data")
	return cmd
}

func newMigrateVerify(a *app, f *migrateFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Compare everything with the old root",
		Long: `Compares each layer with its source: names, attributes, hard links and bytes of files. Of a layer of an image, the digest
of its tar is compared. Containers that have run since differ.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.migrate(cmd.Context(), f, func(m *migration) error { return m.verify(cmd) })
		},
	}
}

func newMigrateUndo(a *app, f *migrateFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "undo",
		Short: "Remove everything that run has made",
		Long: `Removes everything that run has made, and nothing else. Changes that were made to it since are lost. Layers that
something new was made from stay, and are listed; undo can be called again.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.endMigration(cmd.Context(), f, func(error) bool { return false }, func(m *migration) error { return m.undo(cmd) })
		},
	}
}

func newMigrateFinish(a *app, f *migrateFlags) *cobra.Command {
	yes, partial := false, false
	cmd := &cobra.Command{
		Use:   "finish",
		Short: "Remove the old root's images and containers",
		Long: `Removes the layers and images of the old root, for its driver. There is no way back. Volumes of Docker and other
files stay. The engine must not run meanwhile. If something has not come along, finish lists it and needs --partial to remove it.

It asks first. Without a terminal, --yes is the answer.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.endMigration(cmd.Context(), f, func(err error) bool { return !errdefs.IsNotFound(err) },
				func(m *migration) error { return m.finish(cmd, yes, partial) })
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "remove it without a question")
	cmd.Flags().BoolVar(&partial, "partial", false, "remove also images and containers that have not come along")
	return cmd
}

// migration is a migration with its two ends open.
type migration struct {
	*migrate.Migration
	from  *oldRoot
	flags *migrateFlags
	app   *app
}

// migrate opens both ends of a migration, calls do, and closes them.
func (a *app) migrate(ctx context.Context, f *migrateFlags, do func(*migration) error) error {
	if err := f.checkTo(); err != nil {
		return err
	}
	from, err := f.open(ctx, a)
	if err != nil {
		return err
	}
	return a.migrateFrom(ctx, f, from, do)
}

func (f *migrateFlags) checkTo() error {
	switch f.to {
	case toStore, toPlugin, toContainerd:
		return nil
	case "":
		return usagef("say with --to where to move it: %s, %s or %s", toStore, toPlugin, toContainerd)
	}
	return usagef("--to %s: say %s, %s or %s", f.to, toStore, toPlugin, toContainerd)
}

// migrateFrom opens the target of a migration, calls do, and closes both ends.
func (a *app) migrateFrom(ctx context.Context, f *migrateFlags, from *oldRoot, do func(*migration) error) (err error) {
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := f.openTarget(ctx, a, from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	m := migrate.New(from.Source, to.Target, migrate.Options{
		Source: from.dir, Target: to.name, State: to.state, Trust: f.noVerify, Logger: a.log,
	})
	return do(&migration{m, from, f, a})
}

// endMigration is migrate for the commands undo and finish. They need no root that can be read: the journal knows which
// one it is. Nothing is left of it after a finish that was cut off.
func (a *app) endMigration(ctx context.Context, f *migrateFlags, needsRoot func(error) bool, do func(*migration) error) error {
	if err := f.checkTo(); err != nil {
		return err
	}
	ends, err := f.recall(a)
	if err != nil {
		return err
	}
	from, noRoot := f.open(ctx, a)
	if noRoot == nil {
		return a.migrateFrom(ctx, f, from, do)
	}
	if ends == nil || needsRoot(noRoot) {
		return noRoot
	}
	return a.migrateFrom(ctx, f, lostRoot(ends, noRoot), do)
}

func (m *migration) plan(cmd *cobra.Command, asJSON bool) error {
	plan, err := m.Plan(cmd.Context())
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(cmd, describePlan(plan))
	} else {
		err = printMigration(cmd.OutOrStdout(), plan)
	}
	switch {
	case err != nil:
		return err
	case len(plan.Refusals) > 0:
		return plan.Refusals[0]
	case len(plan.Problems) > 0:
		return m.reported(cmd, &migrate.PartialError{Operation: "run", Problems: plan.Problems})
	}
	return nil
}

func (m *migration) run(cmd *cobra.Command) error {
	progress := m.app.migrationProgress(cmd)
	result, err := m.Run(cmd.Context(), progress)
	progress.wait()
	var partial *migrate.PartialError
	if err != nil && !errors.As(err, &partial) {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "moved %s\n", counted(result.Made))
	if len(result.There) > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "there already: %s\n", counted(result.There))
	}
	if !m.app.quiet {
		fmt.Fprint(cmd.ErrOrStderr(), m.flags.next(cmd))
	}
	return m.reported(cmd, err)
}

func (m *migration) verify(cmd *cobra.Command) error { return m.count(cmd, "equal", m.Verify) }

func (m *migration) undo(cmd *cobra.Command) error { return m.count(cmd, "removed", m.Undo) }

// count shows the progress of work, and how many things it was done for.
func (m *migration) count(cmd *cobra.Command, what string, work func(context.Context, migrate.Progress) (int, error)) error {
	progress := m.app.migrationProgress(cmd)
	number, err := work(cmd.Context(), progress)
	progress.wait()
	var partial *migrate.PartialError
	if err != nil && !errors.As(err, &partial) {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %d\n", what, number)
	return m.reported(cmd, err)
}

func (m *migration) finish(cmd *cobra.Command, yes, partial bool) error {
	if err := m.confirmFinish(cmd, yes); err != nil {
		return err
	}
	lost, err := m.Finish(cmd.Context(), partial)
	if err != nil {
		return m.reported(cmd, err)
	}
	for _, p := range lost {
		fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: lost: %s\n", p)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", m.from)
	return err
}

// confirmFinish returns an error unless the user wants the old root to be removed. A terminal is asked.
func (m *migration) confirmFinish(cmd *cobra.Command, yes bool) error {
	switch {
	case yes:
		return nil
	case !isTerminal(cmd.InOrStdin()):
		return usagef("this removes all images and containers of %s for good; to do so, add --yes", m.from)
	}
	is, err := confirmed(cmd, fmt.Sprintf("This removes all images and containers of %s for good. Go on?", m.from))
	if err == nil && !is {
		err = failf(errdefs.ErrAborted, "nothing was removed")
	}
	return err
}

// reported prints the problems of a PartialError, and returns the error.
func (m *migration) reported(cmd *cobra.Command, err error) error {
	var partial *migrate.PartialError
	if errors.As(err, &partial) {
		for _, p := range partial.Problems {
			fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: %s\n", p)
		}
	}
	return err
}

// next says what to do after a run.
func (f *migrateFlags) next(cmd *cobra.Command) string {
	var b strings.Builder
	switch f.to {
	case toPlugin:
		fmt.Fprintf(&b, "Next, make the engine use it: cowshed setup docker --apply --restart\n")
	case toContainerd:
		if f.namespace == "moby" {
			fmt.Fprintf(&b, "Next, make the engine use it: cowshed setup docker --apply --restart\n")
		}
	}
	same := f.given(cmd)
	fmt.Fprintf(&b, "To take it back: cowshed migrate undo %s\n", same)
	fmt.Fprintf(&b, "To remove the old root: cowshed migrate finish %s\n", same)
	return b.String()
}

// given are the flags of a run that the other commands need as well, as for a shell.
func (f *migrateFlags) given(cmd *cobra.Command) string {
	flags := "--from " + shellWord(f.from) + " --to " + f.to
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		switch flag.Name {
		case "from", "to", "no-verify", "quiet":
			return
		}
		values := []string{flag.Value.String()}
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, value := range values {
			flags += " --" + flag.Name + "=" + shellWord(value)
		}
	})
	return flags
}

// shellWord quotes a word for a shell if it needs that.
func shellWord(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,=@+%"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// counted lists numbers of things: "3 layers, 1 image".
func counted(things map[string]int) string {
	var parts []string
	for _, kind := range []string{"layer", "image", "container"} {
		n := things[kind]
		if n == 1 {
			parts = append(parts, "1 "+kind)
		} else {
			parts = append(parts, fmt.Sprintf("%d %ss", n, kind))
		}
	}
	return strings.Join(parts, ", ")
}

// stateDir is the directory of the journal.
func (f *migrateFlags) stateDir(beside string) (string, error) {
	if f.state == "" {
		return filepath.Join(beside, "migration"), nil
	}
	return filepath.Abs(f.state)
}
