package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

type forkFlags struct {
	count   int
	size    string
	ttl     time.Duration
	mountAt string
	labels  map[string]string
	json    bool
}

func newForkCommand(a *app) *cobra.Command {
	f := forkFlags{}
	cmd := &cobra.Command{
		Use:   "fork LAYER [NAME]",
		Short: "Copy a layer as it is now, in use or not",
		Long: `Makes a writable copy of a layer as it is at this moment, and prints its name, which is made up if none is
given. The layer may be in use; it stays writable. LAYER@SNAPSHOT is copied as the snapshot is.

With --count, several copies of the same moment are made, named NAME-1, NAME-2 and so on. A copy has the limit of the
layer, unless --size says another. cowshed changes lists the changes of the copy since this moment, and cowshed merge
applies them to the layer. Layer and copies can be removed in any order.

With --mount-at, each copy is also mounted on the directory of that name, in which %d stands for its number. If that fails, the
command fails, and prints the names of the copies all the same: they stay. A copy
with --ttl is removed after that time, by the next command that lists or removes snapshots or layers. It stays while it
is in use, and while layers are there that were made from it.`,
		Example: `  cowshed fork web web-test
  cowshed fork src try --count 8 --mount-at ../try-%d --ttl 2h`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return a.withLayers(cmd, args[:1], func(s *store) error { return s.fork(cmd, args, f) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	flags := cmd.Flags()
	flags.IntVarP(&f.count, "count", "n", 1, "number of copies")
	flags.StringVar(&f.size, "size", "", "how much each copy may hold, such as 10G, or none")
	flags.DurationVar(&f.ttl, "ttl", 0, "time after which a copy is removed, such as 2h")
	flags.StringVar(&f.mountAt, "mount-at", "", "directory to mount each copy on; %d stands for its number")
	flags.StringToStringVar(&f.labels, "label", nil, "fact about the copies as KEY=VALUE (repeatable)")
	addJSON(cmd, &f.json)
	addContainers(a, cmd)
	return cmd
}

func (f *forkFlags) check() error {
	switch {
	case f.count < 1 || f.count > layerstore.MaxForks:
		return usagef("--count %d: say 1 to %d", f.count, layerstore.MaxForks)
	case f.ttl < 0:
		return usagef("--ttl %s: say a time in the future", f.ttl)
	case f.count > 1 && f.mountAt != "" && !strings.Contains(f.mountAt, "%d"):
		return usagef("--mount-at %s: several copies need %%d in it", f.mountAt)
	}
	return nil
}

func (s *store) fork(cmd *cobra.Command, args []string, f forkFlags) error {
	source, err := s.Layer(cmd.Context(), args[0])
	if err != nil {
		return err
	}
	opts := layerstore.ForkOptions{Count: f.count, TTL: f.ttl, Labels: f.labels}
	if len(args) > 1 {
		opts.Name = args[1]
	}
	if opts.Limit, err = s.ForkLimit(cmd.Context(), source, f.size); err != nil {
		return err
	}
	forks, err := s.Fork(cmd.Context(), source, opts)
	if err != nil {
		return err
	}
	var mountErr error
	if f.mountAt != "" {
		if mountErr = s.mountForks(cmd.Context(), forks, f.mountAt); mountErr != nil {
			mountErr = fmt.Errorf("the layers are made, but not all mounted: %w", mountErr)
		}
	}
	return errors.Join(mountErr, s.printForks(cmd, forks, f.json)) // the names may be made up, and the forks are there
}

func (s *store) printForks(cmd *cobra.Command, forks []live.Fork, asJSON bool) error {
	for i := range forks {
		forks[i].Name = s.Shown(forks[i].Name)
	}
	if asJSON {
		return printJSON(cmd, forks)
	}
	for _, fork := range forks {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), fork.Name); err != nil {
			return err
		}
	}
	return nil
}

// mountForks mounts each layer on its directory.
func (s *store) mountForks(ctx context.Context, forks []live.Fork, pattern string) error {
	for i, fork := range forks {
		target, made, err := makeTarget(strings.ReplaceAll(pattern, "%d", fmt.Sprint(i+1)))
		if err != nil {
			return err
		}
		v, err := s.Driver.Backend().Stat(ctx, fork.Name)
		if err == nil {
			err = s.bind(ctx, v, target, false)
		}
		if err != nil {
			if made {
				_ = os.Remove(target)
			}
			return err
		}
	}
	return nil
}
