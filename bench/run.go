package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// run is one contender in one round.
type run struct {
	config
	root     string // the contender's directory
	driver   contender
	base     *layer
	samples  samples
	opened   time.Duration // how long it took to open the driver
	children []string
	checked  bool         // the results of the operations have been looked at, or need not be
	reopen   func() error // closes the driver and opens it again, which is timed
}

const (
	baseID  = "base0000"
	childID = "child000"
)

// apply adds the base from its compressed tars and removes it again, and then adds it from the plain one.
func (r *run) apply() error {
	for _, c := range []struct {
		format layertar.Format
		op     operation
	}{{layertar.Gzip, opApplyGzip}, {layertar.Zstd, opApplyZstd}} {
		if !slices.Contains(r.base.formats, c.format) {
			continue
		}
		if err := r.settle(); err != nil {
			return err
		}
		id := "base-" + c.format.String()
		start := time.Now()
		err := r.driver.apply(id, r.base, c.format)
		if errors.Is(err, errNotOffered) {
			continue
		}
		if err == nil {
			err = r.sync()
		}
		if err != nil {
			return err
		}
		r.samples.add(c.op, time.Since(start))
		if err := r.driver.remove(id); err != nil {
			return err
		}
	}
	if err := r.settle(); err != nil {
		return err
	}
	start := time.Now()
	if err := r.driver.apply(baseID, r.base, layertar.Plain); err != nil {
		return err
	}
	r.samples.add(opApply, time.Since(start))
	if r.filesystem == "zfs" {
		return nil // unmounting a dataset has made it durable
	}
	if err := r.sync(); err != nil {
		return err
	}
	r.samples.add(opApplyDurable, time.Since(start))
	return nil
}

// applyUntimed adds a base that is not timed.
func (r *run) applyUntimed() error { return r.driver.apply(baseID, r.base, layertar.Plain) }

// createMany makes n children that stay until everything is removed.
func (r *run) createMany(n int) error {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("many%05d", i)
	}
	if r.filesystem == "zfs" {
		if err := r.driver.create(ids[0], baseID, 0); err != nil {
			return err
		}
		return cloneLike(r.root, ids[0], ids[1:])
	}
	for _, id := range ids {
		if err := r.driver.create(id, baseID, 0); err != nil {
			return err
		}
	}
	return nil
}

// start opens the driver anew on the layers that are there, and makes some more.
func (r *run) start() error {
	if err := r.settle(); err != nil {
		return err
	}
	if err := r.reopen(); err != nil {
		return err
	}
	return r.createAfter()
}

// started is for a driver that has been opened on layers that were there.
func (r *run) started() error {
	r.samples.add(opStart, r.opened)
	return r.createAfter()
}

// createAfter makes some more layers than there are, and removes them.
func (r *run) createAfter() error {
	for i := range r.childrenPerRound() {
		id := fmt.Sprintf("after%03d", i)
		if err := r.timed(opStartCreate, func() error { return r.driver.create(id, baseID, 0) }); err != nil {
			return err
		}
	}
	for i := range r.childrenPerRound() {
		if err := r.driver.remove(fmt.Sprintf("after%03d", i)); err != nil {
			return err
		}
	}
	return nil
}

// hundred makes children and removes them again.
func (r *run) hundred() error {
	return r.timed(opHundred, func() error {
		for i := range hundred {
			if err := r.driver.create(fmt.Sprintf("hundred%03d", i), baseID, 0); err != nil {
				return err
			}
		}
		for i := range hundred {
			if err := r.driver.remove(fmt.Sprintf("hundred%03d", i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// childrenPerRound is how many children are made for the operations that take a fresh one each time.
func (c config) childrenPerRound() int {
	if c.filesystem == "zfs" {
		return childrenPerRoundZFS
	}
	return childrenPerRound
}

// create makes children without a limit, and then some with one.
func (r *run) create() error {
	for i := range r.childrenPerRound() {
		id := fmt.Sprintf("plain%03d", i)
		if err := r.timed(opCreate, func() error { return r.driver.create(id, baseID, 0) }); err != nil {
			return err
		}
		r.children = append(r.children, id)
	}
	for i := range r.childrenPerRound() {
		id := fmt.Sprintf("limit%03d", i)
		if err := r.settle(); err != nil {
			return err
		}
		start := time.Now()
		err := r.driver.create(id, baseID, childLimit)
		if errors.Is(err, errNotOffered) {
			return nil
		}
		if err != nil {
			return err
		}
		r.samples.add(opCreateLimit, time.Since(start))
		if r.filesystem != "zfs" { // where every command waits until its change is durable
			if err := r.commit(); err != nil {
				return err
			}
			r.samples.add(opCreateDurable, time.Since(start))
		}
		r.children = append(r.children, id)
	}
	return nil
}

// edit changes files of the child whose changes are then looked for.
func (r *run) edit() error {
	if err := r.driver.create(childID, baseID, 0); err != nil {
		return err
	}
	return r.change(childID)
}

// change changes files of a child.
func (r *run) change(id string) error {
	return r.driver.edit(id, func(dir string) error {
		for _, name := range r.base.someFiles(changedFiles) {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("changed\n")
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
		return nil
	})
}

// check looks at the results of the operations before they are timed, unless that has been done.
func (r *run) check() error {
	if r.checked {
		return nil
	}
	r.checked = true
	countFiles = true
	defer func() { countFiles = false }()

	dirs := make(map[string]bool)
	for _, name := range r.base.someFiles(changedFiles) {
		for d := filepath.Dir(name); d != "."; d = filepath.Dir(d) {
			dirs[d] = true
		}
	}
	n, err := r.driver.changes(childID, baseID)
	if err != nil && !errors.Is(err, errNotOffered) {
		return err
	}
	// Directories that hold a change are listed as well, by those that find their times changed.
	if err == nil && (n < changedFiles || n > changedFiles+len(dirs)) {
		return fmt.Errorf("changes lists %d entries", n)
	}
	diff, err := r.driver.diff(childID, baseID)
	if err != nil {
		return err
	}
	if diff.files != changedFiles {
		return fmt.Errorf("diff holds %d files, want %d", diff.files, changedFiles)
	}
	if diff, err = r.driver.diff(baseID, ""); err != nil {
		return err
	}
	if diff.files != r.base.files || diff.bytes < r.base.bytes {
		return fmt.Errorf("export holds %d files and %d bytes, want %d and %d", diff.files, diff.bytes, r.base.files, r.base.bytes)
	}
	return r.forget()
}

func (r *run) changes() error {
	return r.repeated(opChanges, func() error {
		_, err := r.driver.changes(childID, baseID)
		return err
	})
}

func (r *run) walk() error {
	return r.repeated(opWalk, func() error {
		_, err := r.driver.walk(childID, baseID)
		return err
	})
}

func (r *run) diff() error {
	if _, err := r.driver.diff(childID, baseID); err != nil { // warms the caches
		return err
	}
	return r.timedDiff(opDiff, opDiffReturn)
}

// timedDiff times diffs of the child: until the first byte can be read, and, unless returned is "", until the call returns.
func (r *run) timedDiff(ready, returned operation) error {
	return r.repeatedBy(func() (time.Duration, error) {
		if err := r.forget(); err != nil {
			return 0, err
		}
		start := time.Now()
		result, err := r.driver.diff(childID, baseID)
		took := time.Since(start)
		if err == nil {
			r.samples.add(ready, result.ready)
			if returned != "" {
				r.samples.add(returned, took)
			}
		}
		return took, err
	})
}

func (r *run) usage() error { return r.usageAs(opUsage) }

func (r *run) usageAs(op operation) error {
	if err := r.sync(); err != nil { // written data is counted when it is allocated
		return err
	}
	return r.repeated(op, func() error {
		_, err := r.driver.usage(childID, baseID)
		return err
	})
}

func (r *run) export() error {
	for _, c := range []struct {
		format layertar.Format
		op     operation
	}{{layertar.Plain, opExport}, {layertar.Gzip, opExportGzip}, {layertar.Zstd, opExportZstd}} {
		if !slices.Contains(r.base.formats, c.format) {
			continue
		}
		if err := r.forget(); err != nil {
			return err
		}
		err := r.timed(c.op, func() error { return r.driver.export(baseID, c.format) })
		if err != nil && !errors.Is(err, errNotOffered) {
			return err
		}
	}
	return nil
}

func (r *run) remove() error {
	if err := r.settle(); err != nil {
		return err
	}
	if len(r.children) > 0 {
		r.children = append(r.children, childID)
	}
	for i, id := range r.children {
		start := time.Now()
		if err := r.driver.remove(id); err != nil {
			return err
		}
		if i < r.childrenPerRound() { // the others have changes or limits
			r.samples.add(opRemove, time.Since(start))
		}
	}
	return r.driver.remove(baseID)
}

// forget lets the contender drop results that it would otherwise find again.
func (r *run) forget() error {
	if f, ok := r.driver.(interface{ forget() error }); ok {
		return f.forget()
	}
	return nil
}

// timed measures an operation once, with nothing left to be written or cleaned up.
func (r *run) timed(op operation, do func() error) error {
	if err := r.settle(); err != nil {
		return err
	}
	_, err := r.clock(op, do)
	return err
}

// clock measures an operation as things are.
func (r *run) clock(op operation, do func() error) (took time.Duration, err error) {
	start := time.Now()
	if err := do(); err != nil {
		return 0, err
	}
	took = time.Since(start)
	r.samples.add(op, took)
	return took, nil
}

// repeated measures an operation several times, after a run that warms the caches.
func (r *run) repeated(op operation, do func() error) error {
	if err := do(); err != nil {
		if errors.Is(err, errNotOffered) {
			return nil
		}
		return err
	}
	return r.repeatedBy(func() (time.Duration, error) { return r.clock(op, do) })
}

func (r *run) repeatedBy(do func() (time.Duration, error)) error {
	if err := r.settle(); err != nil {
		return err
	}
	var spent time.Duration
	for i := 0; i == 0 || i < maxRepeats && spent < r.repeat; i++ {
		took, err := do()
		if err != nil {
			return err
		}
		spent += took
	}
	return nil
}
