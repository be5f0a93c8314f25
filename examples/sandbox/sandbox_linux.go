package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/moby/sys/user"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// sandbox is a base and its forks, in a store of their own.
type sandbox struct {
	options
	store   string // directory that the sandbox has made
	backend cowcommon.Backend
	layers  *live.Layers
	results []result // one for each fork
	out     io.Writer
}

// result is the result of a fork.
type result struct {
	fork    string
	score   float64
	err     error // why there is no score
	changes int
}

// base is the name of the layer that is forked.
const base = "base"

// run makes a sandbox, uses it, and removes it.
func run(ctx context.Context, opts options, out io.Writer) (err error) {
	s, err := open(ctx, opts, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(context.WithoutCancel(ctx))) }()
	return s.use(ctx)
}

// open makes the store.
func open(ctx context.Context, opts options, out io.Writer) (*sandbox, error) {
	dir, err := filepath.Abs(opts.dir)
	if err != nil {
		return nil, err
	}
	store, err := os.MkdirTemp(dir, "sandbox-")
	if err != nil {
		return nil, err
	}
	s := &sandbox{options: opts, store: store, out: out, results: make([]result, opts.forks)}
	for i := range s.results {
		s.results[i].fork = fmt.Sprintf("fork-%03d", i+1)
	}
	s.backend, err = btrfs.Open(ctx, filepath.Join(store, "btrfs"), btrfs.Options{})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(store))
	}
	s.layers = live.New(s.backend, live.Dir(store, "btrfs", s.backend), nil) // as the command cowshed has them
	return s, nil
}

// use does everything but the removal.
func (s *sandbox) use(ctx context.Context) error {
	if err := s.step("root", func() (string, error) { return filepath.Base(s.root), s.makeBase(ctx) }); err != nil {
		return err
	}
	before, err := measure(s.store)
	if err != nil {
		return err
	}
	if err := s.step("fork", func() (string, error) { return fmt.Sprintf("%d forks by one call", s.forks), s.fork(ctx) }); err != nil {
		return err
	}
	forked, err := measure(s.store)
	if err != nil {
		return err
	}
	if err := s.step("run", func() (string, error) { return s.runAll(ctx) }); err != nil {
		return err
	}
	if err := s.step("diff", func() (string, error) { return s.diffAll(ctx) }); err != nil {
		return err
	}
	after, err := measure(s.store)
	if err != nil {
		return err
	}
	if err := s.step("merge", func() (string, error) { return s.mergeBest(ctx) }); err != nil {
		return err
	}
	s.printCosts(before, forked, after)
	return nil
}

// step does a step, and prints its name, its time, and the note that it returns.
func (s *sandbox) step(name string, do func() (note string, err error)) error {
	begun := time.Now()
	note, err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(s.out, "%-7s %9.1f ms  %s\n", name, float64(time.Since(begun).Microseconds())/1000, note)
	return nil
}

// makeBase makes the base from a directory or a tar.
func (s *sandbox) makeBase(ctx context.Context) error {
	info, err := os.Stat(s.root)
	if err != nil {
		return err
	}
	if info.IsDir() {
		dir, err := filepath.Abs(s.root)
		if err != nil {
			return err
		}
		_, err = s.layers.Adopt(ctx, base, dir, cowcommon.VolumeOptions{})
		return err
	}
	tar, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := s.backend.Create(ctx, base, cowcommon.VolumeOptions{}); err != nil {
		return err
	}
	_, err = cowcommon.Apply(ctx, s.backend, base, tar, layertar.ApplyOptions{IDMap: user.IdentityMapping{}})
	return err
}

// fork makes all forks of the base at one moment, each with a limit of its own.
func (s *sandbox) fork(ctx context.Context) error {
	names := make([]string, 0, len(s.results))
	for _, r := range s.results {
		names = append(names, r.fork)
	}
	_, err := s.layers.Fork(ctx, base, names, live.ForkOptions{
		Volume: cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: s.limit}},
	})
	return err
}

// runAll runs the command in each fork, some at once. A command that fails has no score.
func (s *sandbox) runAll(ctx context.Context) (note string, err error) {
	var group errgroup.Group
	group.SetLimit(s.jobs)
	for i := range s.results {
		group.Go(func() error {
			r := &s.results[i]
			r.score, r.err = s.runIn(ctx, i+1, r.fork)
			return ctx.Err() // no other command begins then
		})
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	failed := 0
	for _, r := range s.results {
		if r.err != nil {
			failed++
			err = fmt.Errorf("%s: %w", r.fork, r.err)
		}
	}
	note = fmt.Sprintf("%d commands by %s, %d at once", s.forks, s.runtime, s.jobs)
	if failed > 0 {
		note += fmt.Sprintf("; %d failed, the last was %v", failed, err)
	}
	return note, nil
}

// runIn runs the command in one fork, and returns the score.
func (s *sandbox) runIn(ctx context.Context, number int, fork string) (score float64, err error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	dir, err := s.backend.Mount(ctx, fork, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.backend.Unmount(context.WithoutCancel(ctx), fork)) }()
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("it takes longer than %s", s.timeout))
	defer cancel()
	return s.command(ctx, number, dir)
}

// diffAll lists the changes of each fork, and writes them as tars if there is a directory for these.
func (s *sandbox) diffAll(ctx context.Context) (note string, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.jobs)
	for i := range s.results {
		group.Go(func() error { return s.diff(ctx, &s.results[i]) })
	}
	err = group.Wait()
	changes := 0
	for _, r := range s.results {
		changes += r.changes
	}
	return fmt.Sprintf("%d changes", changes), err
}

func (s *sandbox) diff(ctx context.Context, r *result) (err error) {
	c, err := s.layers.Diff(ctx, r.fork, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	r.changes = len(c.Changes)
	if s.diffs == "" {
		return nil
	}
	f, err := os.Create(filepath.Join(s.diffs, r.fork+".tar"))
	if err != nil {
		return err
	}
	return errors.Join(c.WriteTar(ctx, f, nil), f.Close())
}

// mergeBest merges the fork with the highest score into the base. Returns an error if no fork has a score.
func (s *sandbox) mergeBest(ctx context.Context) (note string, err error) {
	var best *result
	for i := range s.results {
		if r := &s.results[i]; r.err == nil && (best == nil || r.score > best.score) {
			best = r
		}
	}
	if best == nil {
		return "", errors.New("no command has succeeded")
	}
	merged, err := s.layers.Merge(ctx, best.fork, live.MergeOptions{})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s with score %s: %d changes", best.fork, strconv.FormatFloat(best.score, 'f', -1, 64), len(merged.Changes)), nil
}

// close removes the layers and the store. The store stays if a layer cannot be removed.
func (s *sandbox) close(ctx context.Context) error {
	err := s.step("remove", func() (string, error) { return fmt.Sprintf("%d forks and the base", s.forks), s.removeAll(ctx) })
	if err := errors.Join(err, s.backend.Close()); err != nil {
		return fmt.Errorf("%s stays: %w", s.store, err)
	}
	return os.RemoveAll(s.store)
}

func (s *sandbox) removeAll(ctx context.Context) (err error) {
	for _, r := range s.results {
		err = errors.Join(err, s.backend.Remove(ctx, r.fork))
	}
	// Sweep removes the moments, which nothing needs without the base.
	return errors.Join(err, s.backend.Remove(ctx, base), s.layers.Sweep(ctx))
}
