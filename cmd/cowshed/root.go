package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/graphdriver"
)

const (
	defaultRoot = "/var/lib/cowshed"
	rootEnv     = "COWSHED_ROOT"
	driverEnv   = "COWSHED_DRIVER"
	autoDriver  = "auto" // stands for the driver that fits
)

// run runs the command line args and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	err = withCause(ctx, err)
	if message := errorMessage(err); message != "" {
		fmt.Fprintf(stderr, "cowshed: %s\n", message)
	}
	if hint := errorHint(cmd, err); hint != "" {
		fmt.Fprintln(stderr, hint)
	}
	return exitCode(err)
}

func newRootCommand() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "cowshed",
		Short: "Keep container layers as copy-on-write volumes",
		Long: `Cowshed keeps container layers as btrfs subvolumes or ZFS filesystems. Making, comparing, measuring and
removing a layer cost in proportion to its changes, however large it is.

A layer is a directory tree with a name. It is made empty, or from another layer, which then cannot be
changed any more. An image is a chain of such layers with a config.`,
		Example: `  cowshed init --loop 20G
  cowshed import docker-archive:debian.tar --name debian
  cowshed create web --parent debian --size 10G --read-write
  cowshed mount web /mnt/web
  cowshed changes web`,
		Version:           versionString(),
		Args:              usageArgs(cobra.NoArgs),
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.setUp(cmd) },
	}
	root.SetVersionTemplate("cowshed {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })

	addGlobalFlags(a, root)
	addCommands(a, root)
	return root
}

// addGlobalFlags adds the flags that each command has.
func addGlobalFlags(a *app, root *cobra.Command) {
	drivers := append([]string{autoDriver}, graphdriver.Drivers()...)
	last := len(drivers) - 1
	flags := root.PersistentFlags()
	flags.StringVar(&a.root, "root", envOr(rootEnv, defaultRoot), "directory of the store (env "+rootEnv+")")
	flags.StringVar(&a.driverName, "driver", envOr(driverEnv, autoDriver), "storage driver: "+strings.Join(drivers[:last], ", ")+" or "+drivers[last]+" (env "+driverEnv+")")
	flags.StringArrayVar(&a.storageOpts, "storage-opt", nil, "option of the driver as KEY=VALUE, such as btrfs.quota=simple (repeatable)")
	flags.StringVar(&a.logLevel, "log-level", "warn", "least severe messages that are logged: debug, info, warn or error")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "only errors, and no progress bars")
	must(root.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions(drivers, cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)))
}

// addCommands adds all commands, in groups.
func addCommands(a *app, root *cobra.Command) {
	for _, group := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"store", "The store:", []*cobra.Command{
			newInitCommand(a), newDeinitCommand(a), newDoctorCommand(a), newStatusCommand(a),
		}},
		{"layers", "Layers:", []*cobra.Command{
			newCreateCommand(a), newAdoptCommand(a), newRmCommand(a), newLsCommand(a), newTreeCommand(a), newLimitCommand(a), newUsageCommand(a), newTopCommand(a),
		}},
		{"contents", "Contents of layers:", []*cobra.Command{
			newMountCommand(a), newUnmountCommand(a), newChangesCommand(a), newDiffCommand(a), newApplyCommand(a),
		}},
		{"live", "Moments of layers:", []*cobra.Command{
			newForkCommand(a), newSnapshotCommand(a), newRollbackCommand(a), newMergeCommand(a), newPromoteCommand(a), newLogCommand(a),
		}},
		{"images", "Images:", []*cobra.Command{
			newImportCommand(a), newExportCommand(a), newImagesCommand(a), newRmiCommand(a),
		}},
		{"streams", "Between stores:", []*cobra.Command{newSendCommand(a), newReceiveCommand(a)}},
		{"migration", "Moving in:", []*cobra.Command{newMigrateCommand(a)}},
		{"daemon", "The daemon:", []*cobra.Command{newServeCommand(a), newSetupCommand(a), newLostCommand(a)}},
	} {
		root.AddGroup(&cobra.Group{ID: group.id, Title: group.title})
		for _, command := range group.commands {
			command.GroupID = group.id
			root.AddCommand(command)
		}
	}
	root.AddCommand(newVersionCommand(), newExitCodesTopic(), newContainersTopic(), newManCommand())
}

func must(err error) {
	if err != nil {
		panic(err) // a flag that is not there
	}
}

func envOr(name, value string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return value
}

// setUp prepares the parts that every command uses.
func (a *app) setUp(cmd *cobra.Command) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(a.logLevel))); err != nil {
		return usageError{fmt.Errorf("--log-level %q: say debug, info, warn or error", a.logLevel)}
	}
	if a.quiet && level < slog.LevelError {
		level = slog.LevelError
	}
	a.log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		},
	}))
	return nil
}

// setUpQuiet is setUp for the completion of names, during which nothing must be printed.
func (a *app) setUpQuiet() {
	a.quiet = true
	a.log = slog.New(slog.DiscardHandler)
}
