package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// run is one contender in one round.
type run struct {
	config
	driver   contender
	base     *layer
	samples  samples
	children []string
}

const (
	baseID  = "base0000"
	childID = "child000"
)

func (r *run) apply() error {
	if err := r.settle(); err != nil {
		return err
	}
	start := time.Now()
	if err := r.driver.apply(baseID, r.base); err != nil {
		return err
	}
	r.samples.add(opApply, time.Since(start))
	if err := r.sync(); err != nil {
		return err
	}
	r.samples.add(opApplyDurable, time.Since(start))
	return nil
}

// create makes children without a limit, and then some with one.
func (r *run) create() error {
	for i := range childrenPerRound {
		id := fmt.Sprintf("plain%03d", i)
		if err := r.timed(opCreate, func() error { return r.driver.create(id, baseID, 0) }); err != nil {
			return err
		}
		r.children = append(r.children, id)
	}
	for i := range childrenPerRound {
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
		if err := r.commit(); err != nil {
			return err
		}
		r.samples.add(opCreateDurable, time.Since(start))
		r.children = append(r.children, id)
	}
	return nil
}

// edit changes files of the child whose changes are then looked for.
func (r *run) edit() error {
	if err := r.driver.create(childID, baseID, 0); err != nil {
		return err
	}
	return r.driver.edit(childID, func(dir string) error {
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

// check looks at what the operations return before they are timed.
func (r *run) check() error {
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

func (r *run) diff() error {
	if _, err := r.driver.diff(childID, baseID); err != nil { // warms the caches
		return err
	}
	return r.repeatedBy(func() (time.Duration, error) {
		if err := r.forget(); err != nil {
			return 0, err
		}
		start := time.Now()
		result, err := r.driver.diff(childID, baseID)
		took := time.Since(start)
		if err == nil {
			r.samples.add(opDiff, result.ready)
			r.samples.add(opDiffReturn, took)
		}
		return took, err
	})
}

func (r *run) usage() error {
	if err := r.sync(); err != nil { // what was written is counted when it is allocated
		return err
	}
	return r.repeated(opUsage, func() error {
		_, err := r.driver.usage(childID, baseID)
		return err
	})
}

func (r *run) export() error {
	if err := r.forget(); err != nil {
		return err
	}
	return r.timed(opExport, func() error {
		_, err := r.driver.diff(baseID, "")
		return err
	})
}

func (r *run) remove() error {
	if err := r.settle(); err != nil {
		return err
	}
	for i, id := range append(r.children, childID) {
		start := time.Now()
		if err := r.driver.remove(id); err != nil {
			return err
		}
		if i < childrenPerRound { // the others have changes or limits
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
	start := time.Now()
	if err := do(); err != nil {
		return err
	}
	r.samples.add(op, time.Since(start))
	return nil
}

// repeated measures an operation several times, after a run that warms the caches.
func (r *run) repeated(op operation, do func() error) error {
	if err := do(); err != nil {
		if errors.Is(err, errNotOffered) {
			return nil
		}
		return err
	}
	return r.repeatedBy(func() (time.Duration, error) {
		start := time.Now()
		err := do()
		took := time.Since(start)
		r.samples.add(op, took)
		return took, err
	})
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
