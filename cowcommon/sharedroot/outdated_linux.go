package sharedroot

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/namelock"
)

// A note goes only after the change that it is about is durable. Otherwise a power cut may undo the change alone: the sync
// of another note makes the removal of this one durable.

// forgetOutdated removes the note of a volume of style snapshot. The caller has the volume's lock.
func (b *Backend) forgetOutdated(ctx context.Context, name string) error {
	if err := b.peek(ctx, name, func(root *os.File) error { return unix.Syncfs(int(root.Fd())) }); err != nil {
		return err
	}
	return b.index.forget(name)
}

// tryForget removes notes about a volume after the change that has made them outdated. The change has happened, and an
// outdated note says nothing, so a failure is logged, and the note goes later.
func (b *Backend) tryForget(volume string, notes ...string) {
	for _, note := range notes {
		if err := b.index.forget(note); err != nil {
			b.log.Warn("shared roots: an outdated note is left over for now", "volume", volume, "error", err)
			b.removed.add(volume)
		}
	}
}

// hasNotes reports whether there are notes of a name.
func (b *Backend) hasNotes(name string) (bool, error) {
	lower, err := b.index.lower(name)
	if err != nil || lower != "" {
		return true, err
	}
	_, limited, err := b.index.limit(name)
	return limited || err != nil, err
}

// clearNotes removes the notes that have been left of a volume, before there is another of its name. The caller has the name
// locked exclusively. A name that a volume has keeps its notes.
func (b *Backend) clearNotes(ctx context.Context, name string) error {
	if has, err := b.hasNotes(name); !has || err != nil || b.opts.ReadOnly {
		return err
	}
	return b.forgetGone(ctx, []string{name})
}

// forgetGone removes the notes of those names that no volume has. The caller has the names locked, or has the home alone.
func (b *Backend) forgetGone(ctx context.Context, names []string) error {
	var gone []string
	for _, name := range names {
		if _, err := b.Backend.Stat(ctx, name); isGone(err) {
			gone = append(gone, name)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	// The Backend inside may remove a volume without a sync if both are on one filesystem.
	if err := b.index.syncAll(); err != nil {
		return err
	}
	var errs []error
	for _, name := range gone {
		errs = append(errs, b.index.forget(name), b.index.forget(liftedNotes+name))
	}
	return errors.Join(errs...)
}

// forgetLeft removes those notes of names that tryForget has left, of volumes that are there still. The caller has the names
// locked.
func (b *Backend) forgetLeft(ctx context.Context, names []string) error {
	var errs []error
	for _, name := range names {
		has, err := b.hasNotes(name)
		if err == nil && has {
			err = b.tryRestoreLimit(ctx, name)
		}
		if err == nil && has {
			var s state
			if s, _, err = b.look(ctx, name); err == nil && s == stateNone {
				err = b.forgetOutdated(ctx, name)
			}
		}
		if !isGone(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// forgetRemoved removes the outdated notes of volumes, most of which are removed. Such notes say nothing, so a failure is
// harmless.
func (b *Backend) forgetRemoved(names []string) {
	var wants []namelock.Want
	for _, name := range names {
		wants = append(wants, exclusive(name))
	}
	unlock, err := b.lock(b.ctx, wants...)
	if err == nil {
		err = errors.Join(b.forgetGone(b.ctx, names), b.forgetLeft(b.ctx, names))
		unlock()
	}
	if err != nil {
		b.log.Warn("shared roots: outdated notes of volumes are left over", "error", err)
	}
}

// removedAtOnce is for how many removed volumes there is one sync.
const removedAtOnce = 64

// removed lists volumes with notes that are outdated: they are removed, or tryForget has failed. It is safe for concurrent use.
type removed struct {
	mu    sync.Mutex
	names []string
}

func (r *removed) add(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names = append(r.names, name)
}

// full returns all names, and forgets them, if they are worth a sync.
func (r *removed) full() []string { return r.take(removedAtOnce) }

// take returns all names, and forgets them, unless there are fewer than atLeast.
func (r *removed) take(atLeast int) (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.names) < atLeast {
		return nil
	}
	names, r.names = r.names, nil
	return names
}
