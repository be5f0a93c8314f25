package migrate

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Verify compares everything that a run has brought to the target with the source. Returns a *PartialError if things
// differ or are missing, and ErrNotFound if there was no run. It returns the number of things that are equal.
func (m *Migration) Verify(ctx context.Context, progress Progress) (equal int, err error) {
	if progress == nil {
		progress = noProgress{}
	}
	inv, err := m.source.Inventory(ctx)
	if err != nil {
		return 0, err
	}
	var problems []Problem
	err = m.resumed(func(j *journal, _ *lockFile) error {
		if j.phases[phaseFinish] != "" {
			return errFinishing
		}
		if err := m.checkDriver(j, inv); err != nil {
			return err
		}
		problems = append(problems, inv.Problems...)
		items := withJournal(inv, j)
		task := progress.Start("things", len(items))
		for _, item := range items {
			if err := context.Cause(ctx); err != nil {
				task.End("stopped")
				return err
			}
			task.Next(item.label())
			if err := m.verify(ctx, item); err != nil {
				problems = append(problems, item.problem(err))
			} else {
				equal++
			}
		}
		task.End("done")
		return context.Cause(ctx)
	})
	if err == nil && len(problems) > 0 {
		err = &PartialError{Operation: "verify", Problems: problems}
	}
	return equal, err
}

func (m *Migration) verify(ctx context.Context, item Item) error {
	has, err := m.target.Has(ctx, item)
	if err == nil && !has {
		err = fault.New(errdefs.ErrNotFound, "it is not in the target")
	}
	if err != nil {
		return err
	}
	return m.target.Verify(ctx, item, m.source)
}

// withJournal lists the things of an inventory, and those that only a journal has: once committed, a container may be no
// container of the old driver any more.
func withJournal(inv *Inventory, j *journal) []Item {
	items := inv.items()
	listed := make(map[key]bool, len(items))
	for _, item := range items {
		listed[item.key()] = true
	}
	for _, item := range j.begun {
		if !listed[item.key()] {
			items = append(items, item)
		}
	}
	return items
}
