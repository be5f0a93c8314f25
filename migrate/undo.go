package migrate

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Undo removes the things that runs have made, and nothing else. Changes that were made to it since are lost. Returns ErrNotFound
// if there was no run, and a *PartialError if things could not be removed; a later Undo tries again.
func (m *Migration) Undo(ctx context.Context, progress Progress) (removed int, err error) {
	if progress == nil {
		progress = noProgress{}
	}
	var problems []Problem
	err = m.locked(func(j *journal, lock *lockFile) error {
		if err := m.begun(j); err != nil {
			return err
		}
		if j.phases[phaseFinish] != "" {
			return errFinishing
		}
		// Should this be cut off, a run does not take it for committed.
		if err := j.phase(phaseCommit, stepIntent); err != nil {
			return err
		}
		if err := m.target.Undo(ctx); err != nil {
			return err
		}
		if err := j.phase(phaseCommit, stepRemoved); err != nil {
			return err
		}
		task := progress.Start("things", len(j.begun))
		for n := len(j.begun) - 1; n >= 0; n-- {
			item := j.begun[n]
			if err := interrupted(ctx); err != nil {
				task.End("stopped")
				return err
			}
			task.Next(item.label())
			err := m.target.Remove(ctx, item)
			if err == nil {
				if err := j.removed(item); err != nil {
					return err
				}
				removed++
				continue
			}
			if ctx.Err() != nil {
				task.End("stopped")
				return err
			}
			problems = append(problems, item.problem(err))
		}
		task.End("done")
		if len(problems) > 0 {
			return &PartialError{Operation: "undo", Problems: problems}
		}
		return m.end(j, lock)
	})
	return removed, err
}

// Finish removes the source, after a run that has brought everything to the target. The caller has asked the user.
//
// Returns ErrFailedPrecondition if there was no such run. Returns a *PartialError if something of the source is not in
// the target, unless partial is true.
func (m *Migration) Finish(ctx context.Context, partial bool) error {
	if err := m.source.InUse(ctx); err != nil {
		return err
	}
	return m.locked(func(j *journal, lock *lockFile) error {
		if err := m.begun(j); err != nil {
			return err
		}
		if j.phases[phaseFinish] == "" {
			if err := m.mayFinish(ctx, j, partial); err != nil {
				return err
			}
			if err := j.phase(phaseFinish, stepIntent); err != nil {
				return err
			}
		}
		if j.phases[phaseFinish] != stepDone {
			if err := m.source.Remove(ctx); err != nil {
				return err
			}
			if err := j.phase(phaseFinish, stepDone); err != nil {
				return err
			}
		}
		return m.end(j, lock)
	})
}

func (m *Migration) mayFinish(ctx context.Context, j *journal, partial bool) error {
	if j.phases[phaseCommit] != stepDone {
		return fault.New(errdefs.ErrFailedPrecondition, "the run from %s is not complete: go on with run", m.opts.Source)
	}
	inv, err := m.source.Inventory(ctx)
	if err != nil {
		return err
	}
	if err := m.checkDriver(j, inv); err != nil {
		return err
	}
	problems := append([]Problem(nil), inv.Problems...)
	for _, item := range inv.items() {
		has, err := m.target.Has(ctx, item)
		if err == nil && !has {
			err = fault.New(errdefs.ErrNotFound, "it is not in the target")
		}
		if err == nil && j.hasBegun(item) && !j.isMade(item) {
			err = fault.New(errdefs.ErrFailedPrecondition, "the run has not verified it")
		}
		if err != nil {
			problems = append(problems, item.problem(err))
		}
	}
	if len(problems) > 0 && !partial {
		return &PartialError{Operation: "finish", Problems: problems}
	}
	return nil
}
