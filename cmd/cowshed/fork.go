package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
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

With --mount-at, each copy is also mounted on the directory of that name, in which %d stands for its number. A copy
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

// maxForks is the most copies that one call makes.
const maxForks = 10_000

func (f *forkFlags) check() error {
	switch {
	case f.count < 1 || f.count > maxForks:
		return usagef("--count %d: say 1 to %d", f.count, maxForks)
	case f.ttl < 0:
		return usagef("--ttl %s: say a time that is to come", f.ttl)
	case f.count > 1 && f.mountAt != "" && !strings.Contains(f.mountAt, "%d"):
		return usagef("--mount-at %s: several copies need %%d in it", f.mountAt)
	}
	return nil
}

func (s *store) fork(cmd *cobra.Command, args []string, f forkFlags) error {
	source, err := s.layer(cmd.Context(), args[0])
	if err != nil {
		return err
	}
	names, err := f.names(args[1:], s.containers != nil)
	if err != nil {
		return err
	}
	opts := live.ForkOptions{Fork: live.Fork{Labels: f.labels}}
	if opts.Volume.Limit, err = s.forkLimit(cmd.Context(), source, f.size); err != nil {
		return err
	}
	if f.ttl > 0 {
		opts.Fork.Expires = time.Now().Add(f.ttl).UTC().Truncate(time.Second)
	}
	m, err := s.live.Fork(cmd.Context(), source.Name, names, opts)
	if err != nil {
		return err
	}
	if f.mountAt != "" {
		if err := s.mountForks(cmd.Context(), names, f.mountAt); err != nil {
			return fmt.Errorf("the layers are made, but not all mounted: %w", err)
		}
	}
	for i := range m.Forks {
		m.Forks[i].Name = s.shown(m.Forks[i].Name)
	}
	if f.json {
		return printJSON(cmd, m.Forks)
	}
	for _, fork := range m.Forks {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), fork.Name); err != nil {
			return err
		}
	}
	return nil
}

// forkLimit is the limit of the copies of a layer or snapshot, which has none itself.
func (s *store) forkLimit(ctx context.Context, source cowcommon.Volume, size string) (quota.Limit, error) {
	if size != "" {
		bytes, err := parseLimitOrNone(size)
		return s.driver.Limit(bytes), err
	}
	if !live.IsMoment(source.Name) {
		return source.Limit, nil
	}
	m, err := s.live.Moment(source.Name)
	if err != nil {
		return quota.Limit{}, err
	}
	layer, err := s.driver.Backend().Stat(ctx, m.Layer)
	return layer.Limit, err
}

// names are the names of the copies. A copy of a container may be named as a reference.
func (f *forkFlags) names(named []string, ofContainer bool) ([]string, error) {
	name, check := randomName(), checkNewLayer
	if len(named) > 0 {
		name = named[0]
	}
	if ofContainer {
		name, check = strings.TrimPrefix(name, string(layerref.Fork)+":"), checkFork
	}
	if f.count == 1 {
		return []string{name}, check(name)
	}
	names := make([]string, f.count)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", name, i+1)
		if err := check(names[i]); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// mountForks mounts each layer on its directory.
func (s *store) mountForks(ctx context.Context, names []string, pattern string) error {
	for i, name := range names {
		target, made, err := makeTarget(strings.ReplaceAll(pattern, "%d", fmt.Sprint(i+1)))
		if err != nil {
			return err
		}
		v, err := s.driver.Backend().Stat(ctx, name)
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

// layerOf finds a layer that is no snapshot, for commands that change it.
func (s *store) layerOf(ctx context.Context, name string) (cowcommon.Volume, error) {
	v, err := s.layerAlone(ctx, name)
	if err != nil {
		return v, err
	}
	user, err := s.userOf(v)
	if err != nil {
		return v, err
	}
	if user != "" {
		return v, failf(errdefs.ErrFailedPrecondition, "layer %s is part of %s; make a layer from it: cowshed create NAME --parent %s",
			shortName(v.Name), user, name)
	}
	return v, nil
}
