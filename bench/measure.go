package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
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
	opWalk          operation = "list 3 changes by walking both trees"
	opHundred       operation = "create 100 children and remove them"
	opApplyGzip     operation = "apply the base, gzip, durable"
	opApplyZstd     operation = "apply the base, zstd, durable"
	opExportGzip    operation = "export the base, gzip"
	opExportZstd    operation = "export the base, zstd"
	opStart         operation = "start"
	opStartCreate   operation = "create a child after it"
)

// The operations on a snapshot, alone and beside others.
const (
	opCompare        operation = "Compare, 3 changes"
	opPrepare        operation = "Prepare"
	opSnapshotUsage  operation = "Usage, 3 changes"
	opSnapshotCommit operation = "Commit, 3 changes"
	opSnapshotRemove operation = "Remove and Cleanup, 3 changes"

	besideFew  = ", few others"
	besideMany = ", many others"
)

// life are the operations that a snapshot goes through.
var life = []operation{opPrepare, opSnapshotUsage, opSnapshotCommit, opSnapshotRemove}

// operations is the order of the report.
var operations = []operation{
	opChanges, opWalk, opDiff, opDiffReturn, opUsage, opCreate, opCreateLimit, opCreateDurable, opRemove, opHundred,
	opApply, opApplyDurable, opApplyGzip, opApplyZstd, opExport, opExportGzip, opExportZstd, opStart, opStartCreate,
	opCompare, opPrepare, opSnapshotUsage, opSnapshotCommit, opSnapshotRemove,
	opPrepare + besideFew, opPrepare + besideMany, opSnapshotUsage + besideFew, opSnapshotUsage + besideMany,
	opSnapshotCommit + besideFew, opSnapshotCommit + besideMany, opSnapshotRemove + besideFew, opSnapshotRemove + besideMany,
	opMount, opRemoveChanged, opRunChanges, opRunDiff, opPageCache, opOnePSS, opPSS, opOneFilePSS, opFilePSS, opFirstStart, opThirdStart, opFirstWrite,
	opSmallFiles, opRenameDir, opCommitFew, opCommitMany, opBareRenames,
	of(opLoad, layertar.Plain), of(opLoad, layertar.Gzip), of(opLoad, layertar.Zstd),
	of(opPull, layertar.Plain), of(opPull, layertar.Gzip), of(opPull, layertar.Zstd),
	opRun, opContainerDiff, opCommit, opContainerGone, opPrune, opPruneFreed,
}

// samples are the times of one contender, by operation.
type samples map[operation][]time.Duration

func (s samples) add(op operation, d time.Duration) { s[op] = append(s[op], d) }

// config describes a run.
type config struct {
	filesystem string
	root       string // a directory on the filesystem under test
	ext4       string // a directory on an ext4 beside it; "": none
	pool       string // of that directory, on ZFS
	work       string // a directory on another filesystem
	rounds     int
	repeat     time.Duration // a cheap operation is repeated until that much time has gone
	only       []string      // names of contenders; empty: all
	log        *slog.Logger
}

// check refuses flags that cannot be, before hours have gone. A report that is kept needs so many rounds at least.
func (c *config) check(flags *flag.FlagSet, output string, rounds int) error {
	switch {
	case c.root == "" || flags.NArg() > 0:
		return errors.New("needs -root and no arguments; see -help")
	case output == "":
		return nil
	case c.rounds < rounds:
		return fmt.Errorf("a report that is kept needs %d rounds", rounds)
	}
	_, err := readDocument(output)
	return err
}

const (
	maxRepeats   = 30
	childLimit   = 10 << 30 // bytes; large enough that the base fits where the limit counts the image
	changedFiles = 3
	// childrenPerRound is how many are made for the operations that take a fresh one each time.
	childrenPerRound    = 8
	childrenPerRoundZFS = 4   // of processes that take long in the test machine
	hundred             = 100 // children that are created and removed at once
	// Snapshots that are there while another goes through its life: at first, and at most.
	fewSnapshots  = 10
	manySnapshots = 2000
)

// workload is a base and the operations with it.
type workload struct {
	title  string // of the section in the report
	key    string // of its plot
	write  func(w io.Writer) error
	once   []step // before all rounds: they make the common parts
	steps  []step
	memory bool // measure that of applying and exporting

	snapshots  bool // of containerd's snapshotters, instead of graph drivers
	containers bool // of overlayfs's users, instead of drivers for the filesystem
	others     int  // snapshots or layers that exist in the end, besides those that are measured
}

// step is a part of a round.
type step struct {
	name string
	do   func(*run) error
}

var (
	smallFileSteps = []step{
		{"apply", (*run).apply}, {"create", (*run).create}, {"edit", (*run).edit}, {"check", (*run).check},
		{"changes", (*run).changes}, {"walk", (*run).walk}, {"diff", (*run).diff}, {"usage", (*run).usage},
		{"export", (*run).export}, {"remove", (*run).remove},
	}
	// zfsSteps leave out steps whose code is the same on every filesystem: the test machine is slow.
	zfsSteps = []step{
		{"apply", (*run).apply}, {"create", (*run).create}, {"edit", (*run).edit}, {"check", (*run).check},
		{"changes", (*run).changes}, {"diff", (*run).diff}, {"usage", (*run).usage}, {"export", (*run).export},
		{"remove", (*run).remove},
	}
	hundredStep    = step{"create and remove 100", (*run).hundred}
	largeFileSteps = []step{{"apply", (*run).apply}, {"export", (*run).export}, {"remove", (*run).remove}}
	startSteps     = []step{{"apply", (*run).applyUntimed}, {"start", (*run).start}}
)

// manyFiles is a base of n small files. all is set for one such workload, which then has steps that do not depend on
// the number of files, too.
func manyFiles(n int, all bool) workload {
	w := workload{
		title: "Base of " + thousands(n) + " files", key: strconv.Itoa(n), memory: true,
		write: func(w io.Writer) error { return writeLayer(w, n) }, steps: smallFileSteps,
	}
	if all {
		last := len(w.steps) - 1
		w.steps = append(slices.Clone(w.steps[:last]), hundredStep, w.steps[last])
	}
	return w
}

// onZFS is a base of n small files on ZFS.
func onZFS(n int) workload {
	return workload{
		title: "Base of " + thousands(n) + " files", key: strconv.Itoa(n),
		write: func(w io.Writer) error { return writeLayer(w, n) }, steps: zfsSteps,
	}
}

// manyLayersOnZFS is a start with n layers that stay for all rounds: to make and to destroy them takes minutes. They
// are the same for all contenders, each of which takes the others' for its own.
func manyLayersOnZFS(n int) workload {
	w := manyLayers(n)
	w.others = n
	if n == fewSnapshots {
		w.key = "few-layers"
	}
	w.once, w.steps = w.steps[:2], []step{{"after the start", (*run).started}}
	return w
}

// largeKey is the key of the base of large files.
const largeKey = "large"

// largeFiles is a base of n files of size bytes.
func largeFiles(n, size int) workload {
	return workload{
		title: fmt.Sprintf("Base of %d files of %d MiB, one of them sparse", n, size>>20), key: largeKey, memory: true,
		write: func(w io.Writer) error { return writeLarge(w, n, size) }, steps: largeFileSteps,
	}
}

// manyLayers is a start with n layers on a small base.
func manyLayers(n int) workload {
	return workload{
		title: "With " + thousands(n) + " layers", key: "layers",
		write: func(w io.Writer) error { return writeLayer(w, 10) },
		steps: append(slices.Clone(startSteps[:1]), step{"create", func(r *run) error { return r.createMany(n) }}, startSteps[1]),
	}
}

// snapshotters has containerd's operations on a snapshotter and a differ, on a base of n small files.
func snapshotters(n int) workload {
	return workload{
		title: "Snapshotters of containerd on a base of " + thousands(n) + " files", key: "snapshotters", snapshots: true,
		write: func(w io.Writer) error { return writeLayer(w, n) },
		steps: []step{
			{"apply", (*run).applyUntimed}, {"edit", (*run).edit}, {"check", (*run).check}, {"compare", (*run).compare},
			{"live", func(r *run) error { return r.live("") }},
		},
	}
}

// besideSnapshots is the life of a snapshot beside few others and beside n, on a small base.
func besideSnapshots(n int) workload {
	return workload{
		title: fmt.Sprintf("Snapshotters of containerd with %d other snapshots and with %s", fewSnapshots, thousands(n)),
		key:   "snapshots", snapshots: true, others: n,
		write: func(w io.Writer) error { return writeLayer(w, 10) },
		steps: []step{
			{"apply", (*run).applyUntimed}, {"edit", (*run).edit}, {"check", (*run).check},
			{"prepare few", func(r *run) error { return r.prepareOthers(0, fewSnapshots) }},
			{"live beside few", func(r *run) error { return r.live(besideFew) }},
			{"prepare many", func(r *run) error { return r.prepareOthers(fewSnapshots, n) }},
			{"live beside many", func(r *run) error { return r.live(besideMany) }},
		},
	}
}

// result has the measurements of one workload.
type result struct {
	title, key string
	others     int // of the workload
	layer      layerFacts
	samples    map[string]samples // by contender
	memory     map[string]memory  // by contender
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
	}
	if c.filesystem == "btrfs" {
		all = append(all, c.btrfsPeers()...)
	} else {
		all = append(all, opener{"moby", func(root string) (contender, error) { return newMoby(c.filesystem, root) }})
	}
	return c.wanted(all)
}

// contendersOf are those that go through a workload.
func (c config) contendersOf(w workload) []opener {
	switch {
	case w.snapshots:
		return c.wanted(c.snapshotters())
	case w.containers:
		return c.wanted(c.overlays())
	}
	return c.contenders()
}

// wanted are those that were asked for.
func (c config) wanted(all []opener) []opener {
	return slices.DeleteFunc(all, func(o opener) bool {
		return len(c.only) > 0 && !slices.Contains(c.only, o.name)
	})
}

// measure runs all contenders through a workload.
func (c config) measure(w workload) (_ *result, err error) {
	formats := allFormats
	if c.filesystem == "zfs" || w.containers {
		formats = allFormats[:1]
	}
	base, err := makeLayer(filepath.Join(c.work, "layer-"+w.key+".tar"), formats, w.write)
	if err != nil {
		return nil, fmt.Errorf("make the base layer: %w", err)
	}
	defer func() {
		if err := base.remove(); err != nil {
			c.log.Error("remove the base layer", "error", err)
		}
	}()

	contenders := c.contendersOf(w)
	r := &result{
		title: w.title, key: w.key, others: w.others,
		layer:   layerFacts{files: base.files, entries: len(base.entries), bytes: base.bytes},
		samples: make(map[string]samples),
		memory:  make(map[string]memory),
	}
	for _, o := range contenders {
		r.samples[o.name] = make(samples)
	}
	// Where layers are made once for all, they are in one place, which the first contender has filled.
	rootOf := func(o opener) string {
		if o.name == onExt4 {
			return filepath.Join(c.ext4, o.name)
		}
		return filepath.Join(c.root, o.name)
	}
	if w.once != nil {
		shared := filepath.Join(c.root, "shared")
		rootOf = func(opener) string { return shared }
		defer func() { err = errors.Join(err, c.removeAll(shared)) }()
		start := time.Now()
		if err := c.runContender(contenders[0], shared, base, w.once, make(samples), false); err != nil {
			return nil, fmt.Errorf("%s: %w", contenders[0].name, err)
		}
		c.log.Info("made ready", "workload", w.key, "took", time.Since(start).Round(time.Second))
	}
	for round := range c.rounds {
		for i := range contenders {
			o := contenders[(i+round)%len(contenders)]
			start := time.Now()
			if err := c.runContender(o, rootOf(o), base, w.steps, r.samples[o.name], round == 0); err != nil {
				return nil, fmt.Errorf("%s: %w", o.name, err)
			}
			c.log.Info("measured", "workload", w.key, "round", round+1, "contender", o.name, "took", time.Since(start).Round(time.Second))
			if w.once == nil {
				if err := c.removeAll(rootOf(o)); err != nil {
					return nil, fmt.Errorf("%s: %w", o.name, err)
				}
			}
		}
	}
	if w.memory {
		for _, o := range contenders {
			if o.name == "floor" {
				continue
			}
			if r.memory[o.name], err = c.measureMemory(o.name, base); err != nil {
				return nil, fmt.Errorf("%s: memory: %w", o.name, err)
			}
		}
	}
	return r, nil
}

// runContender takes one contender through the steps. check makes it look at the results of the operations, too.
func (c config) runContender(o opener, root string, base *layer, steps []step, s samples, check bool) (err error) {
	if err := c.makeRoot(root); err != nil {
		return err
	}
	if err := c.settle(); err != nil {
		return err
	}
	start := time.Now()
	driver, err := o.open(root)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	opened := time.Since(start)
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

	run := run{config: c, root: root, driver: driver, base: base, samples: s, opened: opened, checked: !check || o.name == "floor"}
	run.reopen = func() error {
		err := driver.close()
		driver = nil
		if err != nil {
			return err
		}
		start := time.Now()
		driver, err = o.open(root)
		if err == nil {
			s.add(opStart, time.Since(start))
			run.driver = driver
		}
		return err
	}
	for _, step := range steps {
		if err := step.do(&run); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	err = driver.close()
	driver = nil // closed
	return errors.Join(err, c.settle())
}
