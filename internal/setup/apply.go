package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Apply carries out the plan, all of it or nothing. Returns errdefs.ErrAborted if a file has changed since the plan
// was made. While another process sets up the same, Apply waits, until ctx ends.
func (p *Plan) Apply(ctx context.Context) error {
	if len(p.Changes)+len(p.sweep) == 0 {
		return nil
	}
	unlock, err := lock(ctx, existingDir(p.lockDir))
	if err != nil {
		return err
	}
	defer unlock()
	for _, file := range p.sweep {
		removeTemporary(file)
	}
	for _, c := range p.Changes {
		_, current, err := readConfig(c.real)
		if err != nil {
			return err
		}
		if !bytes.Equal(current, c.Before) || (current == nil) != (c.Before == nil) {
			return fault.New(errdefs.ErrAborted, "%s has just been changed; try again", c.File)
		}
	}
	var begun []*saved
	for _, c := range p.Changes {
		was, err := save(c)
		if err == nil {
			begun = append(begun, was)
			err = p.do(c)
		}
		if err != nil {
			errs := []error{cannotWrite(c.File, err)}
			for _, was := range slices.Backward(begun) {
				errs = append(errs, was.putBack())
			}
			return errors.Join(errs...)
		}
	}
	return nil
}

func (p *Plan) do(c Change) error {
	if c.restores {
		return restore(c)
	}
	return p.change(c)
}

// cannotWrite says what to do where a file cannot be written to.
func cannotWrite(file string, err error) error {
	switch {
	case errors.Is(err, syscall.EROFS):
		return &RefusedError{File: file, Reason: "it is on a read-only filesystem; make this change where the file comes from"}
	case errors.Is(err, syscall.EBUSY):
		return &RefusedError{File: file, Reason: "something is mounted on it, as in a container; make this change where the file comes from"}
	}
	return err
}

// change writes the record of a file, then the file.
func (p *Plan) change(c Change) error {
	made, err := makeDirs(filepath.Dir(c.real))
	if err != nil {
		return err
	}
	old, err := readRecord(c.real)
	if err != nil {
		return err
	}
	next := &record{Target: p.Target, After: []string{string(c.After)}, Made: made}
	if c.Before != nil {
		text := string(c.Before)
		next.Before = &text
	}
	if old.applied(c.Before) {
		next.Target, next.Before, next.Made = old.Target, old.Before, old.Made
		next.After = append([]string{string(c.Before)}, next.After...)
	} else if old != nil {
		next.Made = append(slices.Clone(old.Made), made...)
	}
	if err := next.write(c.real); err != nil {
		return err
	}
	return replaceFile(c.real, c.After, newMode)
}

// restore puts a file back, then removes its record.
func restore(c Change) error {
	r, err := readRecord(c.real)
	if err != nil || r == nil {
		return errors.Join(err, fault.New(errdefs.ErrAborted, "the record of %s has just gone", c.File))
	}
	if c.After == nil {
		err = removeFile(c.real)
	} else if !bytes.Equal(c.Before, c.After) || c.Before == nil {
		err = replaceFile(c.real, c.After, newMode)
	}
	if err != nil {
		return err
	}
	if err := removeFile(c.real + recordSuffix); err != nil {
		return err
	}
	removeDirs(r.Made)
	return nil
}

// saved is the state before a change that may fail.
type saved struct {
	file         string
	text, record []byte   // nil: it was not there
	missing      []string // directories
}

func save(c Change) (*saved, error) {
	s := &saved{file: c.real, text: c.Before, missing: missingDirs(filepath.Dir(c.real))}
	record, err := os.ReadFile(c.real + recordSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	s.record = record
	return s, err
}

// putBack undoes a change, wherever it has failed.
func (s *saved) putBack() error {
	err := errors.Join(putBack(s.file, s.text, newMode), putBack(s.file+recordSuffix, s.record, recordMode))
	removeDirs(s.missing)
	return err
}

func putBack(file string, text []byte, mode fs.FileMode) error {
	current, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && text == nil:
		return nil
	case err == nil && text != nil && bytes.Equal(current, text):
		return nil
	case text == nil:
		return removeFile(file)
	}
	return replaceFile(file, text, mode)
}

// Undo returns the plan that takes back a set-up of the target. There are no changes if it was not set up. A file
// that others have changed since is a [RefusedError] that shows how.
func Undo(target Target, h Host) (*Plan, error) {
	files, units, err := h.files(target)
	if err != nil {
		return nil, err
	}
	p := &Plan{Target: target, Units: units, lockDir: files[0]}
	for _, file := range files {
		real, current, err := readConfig(file)
		if err != nil {
			return nil, err
		}
		p.sweep = append(p.sweep, real)
		r, err := readRecord(real)
		if err != nil {
			return nil, err
		}
		if r == nil || r.Target != target {
			continue
		}
		c := Change{File: file, Before: current, After: r.before(), Why: "as it was before cowshed setup " + string(target), real: real, restores: true}
		if !r.applied(current) && !r.untouched(current) {
			last := []byte(r.After[len(r.After)-1])
			return nil, &RefusedError{File: file, Reason: fmt.Sprintf("it has been changed since it was set up, so that it cannot be put back:\n\n%s\n"+
				"Take out by hand the lines that set-up has put in, shown here backwards, and delete %s%s:\n\n%s",
				unifiedDiff(file, last, current), real, recordSuffix, unifiedDiff(file, last, r.before()))}
		}
		p.Changes = append(p.Changes, c)
		if file == h.CowshedConfig {
			p.Units = append(p.Units, cowshedUnit) // last: until then the engine may use the plugin
		}
	}
	if len(p.Changes) == 0 {
		return p, nil
	}
	return p, h.stillUsed(target)
}
