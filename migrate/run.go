package migrate

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
)

// Result counts the things of a run.
type Result struct {
	Made     map[string]int // things that are in the target because of this migration, by "layer", "image" and "container"
	There    map[string]int // things that others had made before
	Problems []Problem      // of things that did not come along
}

// Run makes everything in the target that is not there, and commits it. After an interrupted run it goes on from there.
//
// Run returns an error and changes nothing if a program works on the source, or if the target refuses. So it does if
// there is a journal of another migration. Returns a *PartialError besides the result if single things did not come
// along.
func (m *Migration) Run(ctx context.Context, progress Progress) (*Result, error) {
	if progress == nil {
		progress = noProgress{}
	}
	if err := m.source.InUse(ctx); err != nil {
		return nil, err
	}
	inv, err := m.source.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.target.Check(ctx, m.source, inv); err != nil {
		return nil, err
	}
	r := &run{Migration: m, inv: inv, without: newDependents(), broken: make(map[key]error), progress: progress, result: &Result{
		Made: make(map[string]int), There: make(map[string]int), Problems: append([]Problem(nil), inv.Problems...),
	}}
	err = m.locked(func(j *journal, _ *lockFile) error {
		r.journal = j
		return r.all(ctx)
	})
	if err != nil {
		return r.result, err
	}
	if len(r.result.Problems) > 0 {
		return r.result, &PartialError{Operation: "run", Problems: r.result.Problems}
	}
	return r.result, nil
}

type run struct {
	*Migration
	inv      *Inventory
	journal  *journal
	without  *dependents
	broken   map[key]error // things that refresh has found to be wrong
	progress Progress
	result   *Result
	changed  bool // something was made
}

func (r *run) all(ctx context.Context) error {
	if r.journal.phases[phaseFinish] != "" {
		return errFinishing
	}
	if err := r.checkDriver(r.journal, r.inv); err != nil {
		return err
	}
	if !r.journal.exists() {
		h := header{Program: r.inv.Program, Driver: r.inv.Driver, Source: r.opts.Source, Target: r.opts.Target}
		if err := r.journal.create(h); err != nil {
			return err
		}
	}
	items := r.inv.items()
	if err := r.refresh(ctx, items); err != nil {
		return err
	}
	for _, kind := range []string{"layer", "image", "container"} {
		if err := r.kind(ctx, kind, items); err != nil {
			return err
		}
	}
	return r.commit(ctx)
}

// kind makes all things of a kind.
func (r *run) kind(ctx context.Context, kind string, items []Item) (err error) {
	var those []Item
	for _, item := range items {
		if item.key().kind == kind {
			those = append(those, item)
		}
	}
	if len(those) == 0 {
		return nil
	}
	task := r.progress.Start(kind+"s", len(those))
	defer func() {
		if err != nil {
			task.End("failed")
		} else {
			task.End("done")
		}
	}()
	for _, item := range those {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		task.Next(item.label())
		err := errors.Join(r.without.check(item), r.broken[item.key()])
		if err == nil {
			err = r.item(ctx, item)
		}
		if err == nil {
			continue
		}
		var journalled *journalError
		if ctx.Err() != nil || errors.As(err, &journalled) || item.stopsAll(err) {
			return err
		}
		r.log.Warn("an item is not moved", item.key().kind, item.key().id, "error", err)
		if !errors.Is(err, errChanged) { // it is there, but old
			r.without.lost(item)
		}
		r.result.Problems = append(r.result.Problems, item.problem(err))
	}
	return nil
}

// journalError is a failure to write the journal, after which nothing more is made.
type journalError struct{ error }

// Unwrap returns the cause.
func (e *journalError) Unwrap() error { return e.error }

func journalled(err error) error {
	if err == nil {
		return nil
	}
	return &journalError{err}
}

// item sees to it that a thing is there.
func (r *run) item(ctx context.Context, item Item) error {
	began := time.Now().UTC()
	has, err := r.target.Has(ctx, item)
	if err != nil {
		return err
	}
	begun := r.journal.hasBegun(item)
	switch {
	case has && !begun:
		r.result.There[item.key().kind]++
		return nil
	case has && r.journal.isMade(item):
		r.result.Made[item.key().kind]++
		return nil
	case !begun:
		if err := r.journal.intent(item, began); err != nil {
			return journalled(err)
		}
	}
	if !has {
		if err := r.make(ctx, item); err != nil {
			return errors.Join(err, r.forget(ctx, item))
		}
	}
	r.changed = true
	if !r.opts.Trust {
		if err := r.target.Verify(ctx, item, r.source); err != nil {
			if ctx.Err() != nil {
				return err // it may be right, and the next run verifies it
			}
			return errors.Join(err, r.remove(ctx, item))
		}
	}
	if err := r.journal.done(item, began); err != nil {
		return journalled(err)
	}
	r.result.Made[item.key().kind]++
	return nil
}

func (r *run) make(ctx context.Context, item Item) error {
	switch {
	case item.Image != nil:
		return r.target.MakeImage(ctx, item.Image)
	case item.Container != nil:
		return r.target.MakeContainer(ctx, item.Container)
	}
	return r.makeLayer(ctx, item.Layer)
}

func (r *run) makeLayer(ctx context.Context, layer *Layer) (err error) {
	content, err := r.source.Open(ctx, layer.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	parts, err := r.source.Parts(ctx, layer.ID)
	if errdefs.IsNotFound(err) {
		return r.target.MakeLayer(ctx, layer, content, nil)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parts.Close()) }()
	return r.target.MakeLayer(ctx, layer, content, parts)
}

// forget takes back the intent of a thing that could not be made, unless it is there all the same.
func (r *run) forget(ctx context.Context, item Item) error {
	if has, err := r.target.Has(context.WithoutCancel(ctx), item); err != nil || has {
		return err
	}
	return journalled(r.journal.removed(item))
}

// remove removes a thing that differs from its source.
func (r *run) remove(ctx context.Context, item Item) error {
	if err := r.target.Remove(ctx, item); err != nil {
		return err
	}
	return journalled(r.journal.removed(item))
}

// commit is the last step, if anything has come along, and unless all of it is committed.
func (r *run) commit(ctx context.Context) error {
	if r.journal.phases[phaseCommit] == stepDone && !r.changed || len(r.result.Made)+len(r.result.There) == 0 {
		return nil
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// An engine may have been started meanwhile.
	if err := r.source.InUse(ctx); err != nil {
		return err
	}
	if err := r.target.Check(ctx, r.source, r.inv); err != nil {
		return err
	}
	if err := r.journal.phase(phaseCommit, stepIntent); err != nil {
		return err
	}
	if err := r.target.Commit(ctx); err != nil {
		return err
	}
	return r.journal.phase(phaseCommit, stepDone)
}
