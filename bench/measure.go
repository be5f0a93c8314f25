package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// operation is a row of the report.
type operation string

const (
	opApply         operation = "apply the base"
	opApplyDurable  operation = "apply the base, durable"
	opCreate        operation = "create a child"
	opCreateLimit   operation = "create a child with a limit"
	opCreateDurable operation = "create a child with a limit, durable"
	opChanges       operation = "list 3 changes"
	opDiff          operation = "diff of 3 changes"
	opDiffReturn    operation = "diff of 3 changes, until it returns"
	opUsage         operation = "usage of a child"
	opExport        operation = "export the base"
	opRemove        operation = "remove a child"
)

// operations is the order of the report.
var operations = []operation{
	opChanges, opDiff, opDiffReturn, opUsage, opCreate, opCreateLimit, opCreateDurable, opRemove, opApply, opApplyDurable,
	opExport,
}

// samples are the times of one contender, by operation.
type samples map[operation][]time.Duration

func (s samples) add(op operation, d time.Duration) { s[op] = append(s[op], d) }

// config is what a run measures and how.
type config struct {
	filesystem string
	root       string // a directory on the filesystem under test
	work       string // a directory on another filesystem
	rounds     int
	repeat     time.Duration // a cheap operation is repeated until that much time has gone
	only       []string      // names of contenders; empty: all
	log        *slog.Logger
}

const (
	maxRepeats   = 30
	childLimit   = 10 << 30 // bytes; large enough that the base fits where the limit counts the image
	changedFiles = 3
	// childrenPerRound is how many are made for the operations that take a fresh one each time.
	childrenPerRound = 8
)

// result is what was measured with one size of the base.
type result struct {
	layer   layerFacts
	samples map[string]samples // by contender
}

type layerFacts struct {
	files, entries int
	bytes          int64
}

// opener makes a contender with its own directory on the filesystem under test.
type opener struct {
	name string
	open func(root string) (contender, error)
}

func (c config) contenders() []opener {
	all := []opener{
		{"cowshed", func(root string) (contender, error) { return newCowshed(c.filesystem, root) }},
		{"moby", func(root string) (contender, error) { return newMoby(c.filesystem, root) }},
	}
	if c.filesystem == "btrfs" {
		all = append(all,
			opener{"podman", func(root string) (contender, error) { return newPodman(c.filesystem, root) }},
			opener{"containerd", func(root string) (contender, error) { return newContainerd(root, c.work) }},
			opener{"floor", newFloor},
		)
	}
	return slices.DeleteFunc(all, func(o opener) bool {
		return len(c.only) > 0 && !slices.Contains(c.only, o.name)
	})
}

// measure runs all contenders on a base of n files.
func (c config) measure(n int) (*result, error) {
	base, err := makeLayer(filepath.Join(c.work, fmt.Sprintf("layer-%d.tar", n)), n)
	if err != nil {
		return nil, fmt.Errorf("make the base layer: %w", err)
	}
	defer func() {
		if err := base.remove(); err != nil {
			c.log.Error("remove the base layer", "error", err)
		}
	}()

	contenders := c.contenders()
	r := &result{
		layer:   layerFacts{files: base.files, entries: len(base.entries), bytes: base.bytes},
		samples: make(map[string]samples),
	}
	for round := range c.rounds {
		for i := range contenders {
			o := contenders[(i+round)%len(contenders)]
			if r.samples[o.name] == nil {
				r.samples[o.name] = make(samples)
			}
			start := time.Now()
			if err := c.runContender(o, base, r.samples[o.name], round == 0); err != nil {
				return nil, fmt.Errorf("%s: %w", o.name, err)
			}
			c.log.Info("measured", "files", n, "round", round+1, "contender", o.name, "took", time.Since(start).Round(time.Second))
		}
	}
	return r, nil
}

// runContender measures every operation of one contender once, or several times where it is cheap. check
// makes it look at the results of the operations, too.
func (c config) runContender(o opener, base *layer, s samples, check bool) (err error) {
	root := filepath.Join(c.root, o.name)
	if err := os.MkdirAll(filepath.Join(root, c.filesystem), 0o710); err != nil {
		return err
	}
	driver, err := o.open(root)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() {
		if driver != nil {
			err = errors.Join(err, driver.close())
		}
	}()
	if p, ok := driver.(interface{ prepare(*layer) error }); ok {
		if err := p.prepare(base); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}

	run := run{config: c, driver: driver, base: base, samples: s}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"apply", run.apply},
		{"create", run.create},
		{"edit", run.edit},
		{"check", func() error {
			if check && o.name != "floor" {
				return run.check()
			}
			return nil
		}},
		{"changes", run.changes},
		{"diff", run.diff},
		{"usage", run.usage},
		{"export", run.export},
		{"remove", run.remove},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	err = driver.close()
	driver = nil // closed
	return errors.Join(err, os.RemoveAll(root), c.settle())
}
