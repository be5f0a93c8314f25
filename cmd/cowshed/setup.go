package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cowshed/cowshed/internal/containerdconf"
	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/setup"
)

// nerdctlConfigEnv is where nerdctl itself looks for the name of its configuration.
const nerdctlConfigEnv = "NERDCTL_TOML"

// setupFlags are the flags of setup.
type setupFlags struct {
	apply, undo, restart bool
	host                 setup.Host
}

func newSetupCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make containerd, Docker, nerdctl, BuildKit or Kubernetes use Cowshed",
		Long: `Shows, as a diff, the changes to a configuration that make a program use Cowshed. --apply makes them, and --undo takes
exactly these changes back. Nothing is restarted without --restart.

Only keys that Cowshed needs are changed: comments, order and all else of the file stay. A change that is not safe is
refused, and the text to add by hand is printed. A second run changes nothing.

The former content of a file is kept in FILE.cowshed-undo, beside it. --undo refuses if somebody else has changed the
file since, and shows how.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []struct {
		target setup.Target
		short  string
		long   string
	}{
		{setup.Containerd, "Make containerd know Cowshed's snapshotter and differ", `Has containerd load Cowshed as snapshotter and differ: a file that its configuration imports, beside
it in conf.d or where it imports files from already. The configuration itself is changed only if it imports no such file.

Clients then choose the snapshotter by its name. The keys of other snapshotters stay.`},
		{setup.Docker, "Make Docker Engine keep images and containers on Cowshed", `Sets the storage driver in daemon.json. Docker Engine 29 and later use the snapshotter of containerd, which has to be
set up first. Docker Engine 20.10 to 26 use the graph driver plugin, which is turned on in Cowshed's own configuration
if it is not.

The engine neither shows nor deletes images and containers of the former storage driver.`},
		{setup.Nerdctl, "Make nerdctl use Cowshed where no snapshotter is named", `Sets the snapshotter in nerdctl.toml. containerd has to be set up first.`},
		{setup.BuildKit, "Make BuildKit build on Cowshed", `Makes buildkitd.toml use containerd with Cowshed's snapshotter for builds, and turns off BuildKit's other worker, which
would take precedence. containerd has to be set up first.`},
		{setup.Kubernetes, "Make Kubernetes keep images and containers on Cowshed", `Has containerd's CRI plugin use Cowshed's snapshotter, by one more file that containerd imports. containerd has to be
set up first.`},
	} {
		cmd.AddCommand(newSetupTargetCommand(a, c.target, c.short, c.long))
	}
	return cmd
}

func newSetupTargetCommand(a *app, target setup.Target, short, long string) *cobra.Command {
	f := &setupFlags{}
	cmd := &cobra.Command{
		Use:     string(target),
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf("  cowshed setup %[1]s\n  cowshed setup %[1]s --apply --restart\n  cowshed setup %[1]s --undo --restart", target),
		Args:    usageArgs(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.setupTarget(cmd, target, f) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.apply, "apply", false, "change it")
	flags.BoolVar(&f.undo, "undo", false, "take back the changes of --apply")
	flags.BoolVar(&f.restart, "restart", false, "with --apply or --undo: restart the program that reads it, with systemctl")
	flags.StringVar(&f.host.CowshedConfig, "config", daemon.DefaultConfigFile, "configuration `FILE` of cowshed serve")
	flags.StringVar(&f.host.ContainerdConfig, "containerd-config", containerdconf.DefaultFile, "configuration `FILE` of containerd")
	flags.StringVar(&f.host.DockerConfig, "docker-config", setup.DefaultDockerConfig, "configuration `FILE` of Docker Engine")
	flags.StringVar(&f.host.NerdctlConfig, "nerdctl-config", envOr(nerdctlConfigEnv, setup.DefaultNerdctlConfig), "configuration `FILE` of nerdctl (env "+nerdctlConfigEnv+")")
	flags.StringVar(&f.host.BuildKitConfig, "buildkit-config", setup.DefaultBuildKitConfig, "configuration `FILE` of BuildKit")
	if target == setup.Docker {
		flags.StringVar(&f.host.Engine, "engine", "", "`VERSION` of Docker Engine; by default that of dockerd --version")
	}
	return cmd
}

func (a *app) setupTarget(cmd *cobra.Command, target setup.Target, f *setupFlags) error {
	switch {
	case f.apply && f.undo:
		return usagef("--apply and --undo are each other's opposite")
	case f.restart && !f.apply && !f.undo:
		return usagef("--restart needs --apply or --undo")
	}
	c, err := daemon.ReadConfig(f.host.CowshedConfig)
	if errors.Is(err, fs.ErrNotExist) && (target == setup.Docker || !cmd.Flags().Changed("config")) {
		c, err = daemon.Default(), nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	a.override(cmd.Flags(), &c)
	if err := c.Validate(); err != nil {
		return err
	}
	f.host.Global = a.globalFlags(cmd.Flags())
	plan, err := a.setupPlan(target, hostOf(c, f.host), f.undo)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if err := printPlan(out, plan); err != nil {
		return err
	}
	if f.apply || f.undo {
		if err := plan.Apply(cmd.Context()); err != nil {
			return err
		}
	}
	return f.finish(cmd, plan)
}

func (a *app) setupPlan(target setup.Target, h setup.Host, undo bool) (*setup.Plan, error) {
	if undo {
		return setup.Undo(target, h)
	}
	return setup.New(target, h)
}

// hostOf is a host with this configuration of cowshed serve, and the files that the flags name.
func hostOf(c daemon.Config, files setup.Host) setup.Host {
	h := files
	h.Socket, h.Root = c.Address, filepath.Join(c.Root, "containerd")
	h.ContainerdAddress, h.DockerPlugin = c.ContainerdAddress, c.DockerPlugin
	return h
}

// globalFlags are those of all commands that the command line has and the configuration may have otherwise.
func (a *app) globalFlags(flags *pflag.FlagSet) []string {
	if flags.Changed("root") {
		return []string{"--root", a.root}
	}
	return nil
}

// printPlan prints the diff, and notes for the user.
func printPlan(out io.Writer, plan *setup.Plan) error {
	for _, change := range plan.Changes {
		if _, err := fmt.Fprint(out, change.Diff()); err != nil {
			return err
		}
	}
	if len(plan.Changes) > 0 {
		fmt.Fprintln(out)
	}
	for _, change := range plan.Changes {
		fmt.Fprintf(out, "%s: %s\n", change.File, change.Why)
	}
	for _, note := range plan.Notes {
		fmt.Fprintln(out, note)
	}
	return nil
}

// finish prints the result, and restarts units if asked to.
func (f *setupFlags) finish(cmd *cobra.Command, plan *setup.Plan) error {
	out := cmd.OutOrStdout()
	switch {
	case len(plan.Changes) == 0 && f.undo:
		fmt.Fprintf(out, "nothing is to be done: cowshed setup %s --apply has changed nothing here\n", plan.Target)
	case len(plan.Changes) == 0:
		fmt.Fprintf(out, "nothing is to be done: %s uses Cowshed as it is\n", plan.Target)
	case f.undo:
		fmt.Fprintln(out, "taken back")
	case f.apply:
		fmt.Fprintln(out, "changed; to take it back, run it with --undo instead of --apply")
	default:
		_, err := fmt.Fprintf(out, "nothing was changed; to change it, run it with --apply\n")
		return err
	}
	if f.restart {
		if err := plan.Restart(cmd.Context()); err != nil {
			return err
		}
		for _, unit := range plan.Units {
			fmt.Fprintf(out, "restarted %s\n", unit)
		}
		return nil
	}
	if len(plan.Changes) > 0 && len(plan.Units) > 0 {
		fmt.Fprintf(out, "it takes effect with: systemctl restart %s\n", strings.Join(plan.Units, " "))
	}
	return nil
}
