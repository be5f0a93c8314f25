package setup

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
)

// Apply does what the plan says, all of it or nothing. It returns an errdefs.ErrAborted if a file is no longer what it
// was when the plan was made.
func (p *Plan) Apply() (err error) {
	if len(p.Changes) == 0 {
		return nil
	}
	unlock, err := lock(existingDir(p.lockDir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	for _, c := range p.Changes {
		_, current, err := readConfig(c.real)
		if err != nil {
			return err
		}
		if !bytes.Equal(current, c.Before) || (current == nil) != (c.Before == nil) {
			return fmt.Errorf("%w: %s has just been changed; try again", errdefs.ErrAborted, c.File)
		}
	}
	for i, c := range p.Changes {
		if err := p.do(c); err != nil {
			return errors.Join(cannotWrite(c.File, err), p.takeBack(p.Changes[:i]))
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
	if errors.Is(err, syscall.EROFS) {
		return &Refusal{File: file, Reason: "it is on a read-only filesystem; make this change where the file comes from"}
	}
	return err
}

// change writes the record of a file, then the file.
func (p *Plan) change(c Change) (err error) {
	made, err := makeDirs(filepath.Dir(c.real))
	if err != nil {
		removeDirs(made)
		return err
	}
	old, err := readRecord(c.real)
	if err != nil {
		removeDirs(made)
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
		removeDirs(made)
		return err
	}
	if err := replaceFile(c.real, c.After, 0o644); err != nil {
		if old != nil {
			return errors.Join(err, old.write(c.real))
		}
		err = errors.Join(err, removeFile(c.real+recordSuffix))
		removeDirs(made)
		return err
	}
	return nil
}

// restore puts a file back, then removes its record.
func restore(c Change) error {
	r, err := readRecord(c.real)
	if err != nil || r == nil {
		return errors.Join(err, fmt.Errorf("%w: the record of %s has just gone", errdefs.ErrAborted, c.File))
	}
	if c.After == nil {
		err = removeFile(c.real)
	} else if !bytes.Equal(c.Before, c.After) || c.Before == nil {
		err = replaceFile(c.real, c.After, 0o644)
	}
	if err != nil {
		return err
	}
	removeTemporary(c.real)
	if err := removeFile(c.real + recordSuffix); err != nil {
		return err
	}
	removeDirs(r.Made)
	return nil
}

// takeBack undoes changes that were made before another one failed.
func (p *Plan) takeBack(done []Change) error {
	var errs []error
	for _, c := range slices.Backward(done) {
		if c.restores {
			// What was undone is set up again, as it was.
			c.Before, c.After, c.restores = c.After, c.Before, false
			errs = append(errs, p.change(c))
			continue
		}
		r, err := readRecord(c.real)
		switch {
		case err != nil || r == nil:
			errs = append(errs, err)
		case len(r.After) > 1: // it was set up before
			r.After = r.After[:len(r.After)-1]
			errs = append(errs, replaceFile(c.real, c.Before, 0o644), r.write(c.real))
		default:
			c.Before, c.After = c.After, c.Before
			errs = append(errs, restore(c))
		}
	}
	return errors.Join(errs...)
}

// Undo returns what takes back what a set-up of the target has changed. There are no changes if it was not set up.
// A file that others have changed since is a [Refusal] that shows how.
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
			return nil, &Refusal{File: file, Reason: fmt.Sprintf("it has been changed since it was set up, so that it cannot be put back:\n\n%s\n"+
				"Take out by hand what set-up has put in, which is shown here backwards, and delete %s%s:\n\n%s",
				unifiedDiff(file, last, current), real, recordSuffix, unifiedDiff(file, last, r.before()))}
		}
		p.Changes = append(p.Changes, c)
	}
	if len(p.Changes) == 0 {
		return p, nil
	}
	return p, h.stillUsed(target)
}
