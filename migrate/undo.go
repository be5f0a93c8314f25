package migrate

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Undo removes the things that runs have made, and nothing else. Changes that were made to them since are lost. Returns
// ErrNotFound if there was no run, and a *PartialError if things could not be removed. A later Undo tries again.
func (m *Migration) Undo(ctx context.Context, progress Progress) (removed int, err error) {
	if progress == nil {
		progress = noProgress{}
	}
	var problems []Problem
	err = m.resumed(func(j *journal, lock *lockFile) error {
		if j.phases[phaseFinish] != "" {
			return errFinishing
		}
		// Should this be cut off, a run does not take it for committed.
		committed := j.mayBeCommitted()
		if committed {
			if err := j.phase(phaseCommit, stepIntent); err != nil {
				return err
			}
		}
		if err := m.target.Undo(ctx); err != nil {
			return err
		}
		if committed {
			if err := j.phase(phaseCommit, stepRemoved); err != nil {
				return err
			}
		}
		task := progress.Start("things", len(j.begun))
		for n := len(j.begun) - 1; n >= 0; n-- {
			item := j.begun[n]
			if err := context.Cause(ctx); err != nil {
				task.End("stopped")
				return err
			}
			task.Next(item.label())
			err := m.target.Remove(ctx, item)
			if err == nil {
				// On a full filesystem this goes on without the note, and so makes room. A later Undo removes nothing twice.
				if err := j.removed(item); err != nil && !fault.IsFull(err) {
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
// After an interrupted Finish, the next Finish goes on. The source of that Migration is Removed if nothing is left of
// the root.
//
// Returns ErrFailedPrecondition if the run is not complete, and ErrNotFound if there was no run. Returns a
// *PartialError if something of the source is not in the target. If partial is true, it removes the things that are not
// in the target all the same, and returns them as lost. It then refuses only because of three other kinds of things:
// things that may be newer in the source, things of which nothing is known, and layers that would not outlive the
// source.
func (m *Migration) Finish(ctx context.Context, partial bool) (lost []Problem, err error) {
	if err := m.source.InUse(ctx); err != nil {
		return nil, err
	}
	err = m.resumed(func(j *journal, lock *lockFile) error {
		if j.phases[phaseFinish] == "" {
			if lost, err = m.mayFinish(ctx, j, partial); err != nil {
				return err
			}
			if err := j.phase(phaseFinish, stepIntent); err != nil {
				return err
			}
		}
		if j.phases[phaseFinish] != stepDone {
			if err := m.remove(ctx, j); err != nil {
				return err
			}
			if err := j.phase(phaseFinish, stepDone); err != nil {
				return err
			}
		}
		return m.end(j, lock)
	})
	return lost, err
}

// remove removes the source. After an interruption, the root may have another driver's layers left alone.
func (m *Migration) remove(ctx context.Context, j *journal) error {
	if _, isGone := m.source.(removed); isGone {
		return nil
	}
	inv, err := m.source.Inventory(ctx)
	if err != nil {
		return err
	}
	if err := m.checkDriver(j, inv); err != nil {
		return err
	}
	if err := m.settle(ctx, j); err != nil {
		return err
	}
	return m.source.Remove(ctx)
}

// settle makes the layers that runs have made independent of the source, parents first. A user may have removed some.
func (m *Migration) settle(ctx context.Context, j *journal) error {
	for _, item := range j.begun {
		if item.Layer == nil {
			continue
		}
		if err := m.target.Settle(ctx, item.Layer); err != nil && !errdefs.IsNotFound(err) {
			return fault.Wrap("settle layer", item.Layer.ID, err)
		}
	}
	return nil
}

// mayFinish returns the things that are lost if the source is removed now, and an error if it must not be.
func (m *Migration) mayFinish(ctx context.Context, j *journal, partial bool) (lost []Problem, err error) {
	if j.phases[phaseCommit] != stepDone {
		return nil, fault.New(errdefs.ErrFailedPrecondition, "the run from %s is not complete: continue it with run", m.opts.Source)
	}
	inv, err := m.source.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.checkDriver(j, inv); err != nil {
		return nil, err
	}
	lost = append(lost, inv.Problems...)
	var unsure []Problem
	for _, item := range inv.items() {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		has, err := m.target.Has(ctx, item)
		if errdefs.IsNotFound(err) {
			has, err = false, nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil && !has:
			lost = append(lost, item.problem(fault.New(errdefs.ErrNotFound, "it is not in the target")))
			continue
		case err == nil:
			err = m.isWhole(ctx, j, item)
		}
		if err != nil {
			unsure = append(unsure, item.problem(err))
		}
	}
	settled, problems, err := m.checkSettle(ctx, j)
	if err != nil {
		return nil, err
	}
	unsure = append(unsure, problems...)
	if len(unsure) > 0 || len(lost) > 0 && !partial {
		return nil, &PartialError{Operation: "finish", Problems: append(lost, unsure...)}
	}
	if err := m.target.CheckSettle(ctx, settled...); err != nil {
		return nil, fmt.Errorf("all layers together: %w", err)
	}
	return lost, nil
}

// checkSettle checks each layer that settle would settle: once the source is being removed, there is no way back. It returns
// the layers, and the problems of those that cannot be settled.
func (m *Migration) checkSettle(ctx context.Context, j *journal) (settled []*Layer, problems []Problem, err error) {
	for _, item := range j.begun {
		if item.Layer == nil {
			continue
		}
		err := m.target.CheckSettle(ctx, item.Layer)
		switch {
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		case errdefs.IsNotFound(err): // its user has removed it
		case err != nil:
			problems = append(problems, item.problem(err))
		default:
			settled = append(settled, item.Layer)
		}
	}
	return settled, problems, nil
}

// isWhole returns an error if a thing in the target is not known to be as new as its source.
func (m *Migration) isWhole(ctx context.Context, j *journal, item Item) error {
	if j.hasBegun(item) && !j.isMade(item) {
		return fault.New(errdefs.ErrFailedPrecondition, "the run has not verified it")
	}
	changed, err := m.isChanged(ctx, j, item)
	if err == nil && changed {
		err = errChanged
	}
	return err
}
