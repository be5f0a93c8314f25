package live

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Sweep removes forks that have expired, are not in use and have no layers made from them. It removes moments that
// nothing needs any more: those without a name or without their layer, from which nothing is made. It ends the
// schedules of layers that are gone. It does nothing while others are at work: the others sweep later.
func (l *Layers) Sweep(ctx context.Context) (err error) {
	if _, err := os.Stat(l.path(momentsDir)); errors.Is(err, fs.ErrNotExist) { // and a full filesystem has no room for it
		return nil
	}
	l.left.Store(true) // for the case that others are at work
	return l.ifAlone(ctx, l.sweep)
}

// HasLeft reports whether the last Sweep has left moments that a later one may remove: they were in use, or others were at work.
func (l *Layers) HasLeft() bool { return l.left.Load() }

// sharersPatience is how long SweepSharers waits for others.
const sharersPatience = 30 * time.Second

// SweepSharers is Sweep before the removal of a volume that others share. The volume stays until the others are gone.
// If all of the others are moments, SweepSharers waits for a while until nobody else is at work.
func (l *Layers) SweepSharers(ctx context.Context, volume string) (err error) {
	sharers, err := cowcommon.Sharers(ctx, l.backend)
	if err != nil {
		return err
	}
	isLayer := func(name string) bool { return !IsMoment(name) }
	if len(sharers[volume]) == 0 || slices.ContainsFunc(sharers[volume], isLayer) {
		return l.Sweep(ctx)
	}
	waiting, end := context.WithTimeout(ctx, sharersPatience)
	defer end()
	unlock, err := l.alone(waiting)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil // the volume is in use still, as its removal says
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return l.sweep(ctx)
}

// HasExpired reports whether a record has a fork that has expired. The fork may be gone, or in use. It needs no Backend.
func (l *Layers) HasExpired(now time.Time) (bool, error) {
	volumes, err := l.recorded(momentsDir, "")
	if err != nil {
		return false, err
	}
	for _, volume := range volumes {
		r, err := l.load(momentsDir, volume)
		if err != nil { // it has just gone, or each Sweep says so
			continue
		}
		if slices.ContainsFunc(r.Forks, func(f Fork) bool { return f.expired(now) }) {
			return true, nil
		}
	}
	return false, nil
}

// IsExpired reports whether a layer is a fork that has expired, and only waits for its removal.
func (l *Layers) IsExpired(ctx context.Context, v cowcommon.Volume) (bool, error) {
	m, err := l.ForkedFrom(ctx, v)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	now := time.Now()
	return slices.ContainsFunc(m.Forks, func(f Fork) bool { return f.Name == v.Name && f.expired(now) }), err
}

// Recover ends the steps that a crash interrupted. Until then a layer may have no name. It does nothing while somebody else is
// at work; the next caller that is alone does it.
func (l *Layers) Recover(ctx context.Context) error {
	if pending, err := l.recorded(pendingDir, ""); err != nil || len(pending) == 0 {
		return err
	}
	return l.ifAlone(ctx, func(context.Context) error { return nil })
}

// ifAlone ends interrupted steps and calls do, unless somebody else is at work.
func (l *Layers) ifAlone(ctx context.Context, do func(ctx context.Context) error) (err error) {
	lock, err := l.openLock(lockFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	alone, err := lock.TryExclusive()
	if err != nil {
		return err
	}
	if waited := l.kept.note(alone, time.Now()); waited > 0 {
		l.log.Warn("expired forks and moments are not deleted, since other callers use the store all the time", "for", waited, "lock", l.path(lockFile))
	}
	if !alone {
		return nil
	}
	if err := l.endInterrupted(ctx); err != nil {
		return err
	}
	return do(ctx)
}

// kept is the time since which others keep a process from cleaning up.
type kept struct {
	mu    sync.Mutex
	since time.Time
}

// patience is how long others may keep a process from cleaning up before it says so, and then again.
const patience = time.Hour

// note notes an attempt to clean up. It returns how long there was none that succeeded, each time that this is too long.
func (k *kept) note(alone bool, now time.Time) (waited time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case alone:
		k.since = time.Time{}
	case k.since.IsZero():
		k.since = now
	case now.Sub(k.since) >= patience:
		waited = now.Sub(k.since)
		k.since = now
	}
	return waited
}

// sweep removes all that it can, also if something else cannot be removed.
func (l *Layers) sweep(ctx context.Context) error {
	l.left.Store(false)
	expireErr := errors.Join(l.removeTemporary(momentsDir), l.removeTemporary(hooksDir), l.expire(ctx, time.Now()), l.sweepSchedules(ctx))
	for {
		again, err := l.sweepOnce(ctx)
		if !again {
			namedErr := l.sweepNamed()
			if fault.IsFull(namedErr) { // a later Sweep does the same
				namedErr = nil
			}
			return errors.Join(expireErr, err, namedErr)
		}
	}
}

// expire removes the forks that have expired, unless other layers were made from them.
func (l *Layers) expire(ctx context.Context, now time.Time) (err error) {
	records, err := l.records(momentsDir, "")
	expired := make(map[string]record) // moments by fork
	for _, r := range records {
		for _, fork := range r.Forks {
			if fork.expired(now) {
				expired[fork.Name] = r
			}
		}
	}
	if err != nil || len(expired) == 0 {
		return err
	}
	volumes, _, err := l.volumes(ctx)
	if err != nil {
		return err
	}
	parents := make(map[string]bool)
	for _, v := range volumes {
		parents[v.Parent] = parents[v.Parent] || !IsMoment(v.Name)
	}
	for fork, r := range expired {
		is, forkErr := l.isFork(ctx, volumes[fork], r.Volume)
		switch {
		case !is: // it is another layer of that name
		case parents[fork]:
			l.tellStays(fork, "layers were made from it")
		default:
			forkErr = l.removeUnused(ctx, fork)
		}
		err = errors.Join(err, forkErr)
	}
	return err
}

// removeUnused removes a volume, unless it is in use.
func (l *Layers) removeUnused(ctx context.Context, name string) error {
	err := l.backend.Remove(ctx, name)
	if errors.Is(err, fault.ErrInUse) || errdefs.IsFailedPrecondition(err) {
		l.tellStays(name, err.Error())
		return nil
	}
	l.told.Delete(name)
	return err
}

// tellStays logs why a volume is not removed yet, once as long as that is the same.
func (l *Layers) tellStays(name, why string) {
	if before, _ := l.told.Swap(name, why); before != why {
		l.log.Info("it stays for now", "volume", name, "reason", why)
	}
}

// sweepOnce removes recorded moments that nothing needs. Others are those of another directory. A layer with a step that could
// not be ended counts as there, since it may have no name for the moment. A moment may need another, so the caller repeats it
// after it has removed some.
func (l *Layers) sweepOnce(ctx context.Context) (again bool, err error) {
	records, err := l.records(momentsDir, "")
	if err != nil || len(records) == 0 {
		return false, err
	}
	volumes, needed, err := l.volumes(ctx)
	if err != nil {
		return false, err
	}
	pending, err := l.recorded(pendingDir, "")
	if err != nil {
		return false, err
	}
	for _, r := range records {
		_, hasLayer := volumes[r.Layer]
		hasLayer = hasLayer || slices.ContainsFunc(pending, func(volume string) bool { return strings.HasPrefix(volume, tag(r.Layer)) })
		gone, recordErr := l.sweepRecord(ctx, r, volumes, hasLayer, needed[r.Volume])
		again = again || gone
		err = errors.Join(err, recordErr)
	}
	return again, err
}

// sweepRecord removes a moment if nothing needs it. Otherwise it takes forks that are gone out of the record, and the
// name if the layer is gone.
func (l *Layers) sweepRecord(ctx context.Context, r record, volumes map[string]cowcommon.Volume, hasLayer, needed bool) (gone bool, err error) {
	if _, ok := volumes[r.Volume]; !ok {
		return false, l.forget(momentsDir, r.Volume)
	}
	was, name := r.Forks, r.Name
	if r.Forks, err = l.forksIn(ctx, r, volumes); err != nil {
		return false, err
	}
	if (r.Name == "" || !hasLayer) && !needed && len(r.Forks) == 0 {
		gone, err = l.removeMoment(ctx, r.Volume)
		if !gone {
			l.left.Store(true)
		}
		return gone, err
	}
	if !hasLayer {
		r.Name = ""
	}
	if len(r.Forks) == len(was) && r.Name == name {
		return false, nil
	}
	err = l.save(momentsDir, r)
	if fault.IsFull(err) { // a later Sweep finds the same
		return false, nil
	}
	return false, err
}

// forksIn returns the forks in a record that are among volumes. Each needs the moment, from which its changes count, also after a
// rollback or a merge of the fork.
func (l *Layers) forksIn(ctx context.Context, r record, volumes map[string]cowcommon.Volume) ([]Fork, error) {
	return l.forksThere(ctx, r, func(name string) (cowcommon.Volume, error) { return volumes[name], nil })
}

// forksThere returns the forks in a record that are there. find describes the volume of a name, and returns the zero Volume if
// there is none.
func (l *Layers) forksThere(ctx context.Context, r record, find func(name string) (cowcommon.Volume, error)) (forks []Fork, err error) {
	for _, fork := range r.Forks {
		v, err := find(fork.Name)
		if err != nil {
			return nil, err
		}
		is, err := l.isFork(ctx, v, r.Volume)
		if err != nil {
			return nil, err
		}
		if is {
			forks = append(forks, fork)
		}
	}
	return forks, nil
}

// volumes lists all volumes by name, and the names of those that others need as their Parent. A layer does: its Parent tells from
// where its changes count. A moment does not, since its record tells that, and its content is complete. But the volume of a step that
// has not ended may become a layer.
func (l *Layers) volumes(ctx context.Context) (volumes map[string]cowcommon.Volume, needed map[string]bool, err error) {
	unfinished, err := l.unfinishedVolumes()
	if err != nil {
		return nil, nil, err
	}
	volumes, needed = make(map[string]cowcommon.Volume), make(map[string]bool)
	for v, err := range l.backend.Volumes(ctx) {
		if err != nil {
			return nil, nil, err
		}
		volumes[v.Name] = v
		if v.Parent != "" && (!IsMoment(v.Name) || unfinished(v.Name)) {
			needed[v.Parent] = true
		}
	}
	return volumes, needed, nil
}

// unfinishedVolumes returns a function that reports whether a volume with the name of a moment is no recorded one. It may be of a step
// that has not ended.
func (l *Layers) unfinishedVolumes() (func(volume string) bool, error) {
	recorded := make(map[string]bool)
	for _, dir := range []string{momentsDir, pendingDir} { // in this order, since the latter counts
		volumes, err := l.recorded(dir, "")
		if err != nil {
			return nil, err
		}
		for _, volume := range volumes {
			recorded[volume] = dir == momentsDir
		}
	}
	return func(volume string) bool { return !recorded[volume] }, nil
}

// removeUnneeded removes the volume of a moment and its record, unless it is in use or something needs it.
func (l *Layers) removeUnneeded(ctx context.Context, volume string) (gone bool, err error) {
	volumes, needed, err := l.volumes(ctx)
	if err != nil || needed[volume] {
		return false, err
	}
	r, err := l.load(momentsDir, volume)
	if err != nil && !errdefs.IsNotFound(err) {
		return false, err
	}
	forks, err := l.forksIn(ctx, r, volumes)
	if err != nil || len(forks) > 0 {
		return false, err
	}
	return l.removeMoment(ctx, volume)
}

// removeMoment removes the volume of a moment and its record, unless it is in use.
func (l *Layers) removeMoment(ctx context.Context, volume string) (gone bool, err error) {
	if err := l.removeUnused(ctx, volume); err != nil {
		return false, err
	}
	if _, still, err := l.exists(ctx, volume); err != nil || still {
		return false, err
	}
	return true, l.forget(momentsDir, volume)
}

// removeTemporary removes records that a crash has left half-written. The caller is alone.
func (l *Layers) removeTemporary(dir string) error {
	entries, err := os.ReadDir(l.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), temporaryPrefix) {
			err = errors.Join(err, os.Remove(l.path(dir, entry.Name())))
		}
	}
	return err
}

// endInterrupted ends the steps that a crash interrupted.
func (l *Layers) endInterrupted(ctx context.Context) error {
	if err := l.removeTemporary(pendingDir); err != nil {
		return err
	}
	records, err := l.records(pendingDir, "")
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := l.endListed(ctx, r); err != nil {
			if before, _ := l.told.Swap(r.Volume, err.Error()); before != err.Error() {
				l.log.Warn("an interrupted step is ended later", "moment", r.Volume, "layer", r.Layer, "error", err)
			}
		}
	}
	return nil
}

// endListed is endPending of a step that may be of another process. A Backend may describe volumes from memory, which lacks the
// last change of a process that was killed. So the list decides which volumes there are.
func (l *Layers) endListed(ctx context.Context, r record) error {
	volumes, _, err := l.volumes(ctx)
	if err != nil {
		return err
	}
	find := func(_ context.Context, name string) (cowcommon.Volume, bool, error) {
		v, ok := volumes[name]
		return v, ok, nil
	}
	return l.endPending(ctx, r, ending{find: find, seal: l.seal})
}

// ending says how a step is ended.
type ending struct {
	// find describes a volume. ok is false if there is none of that name.
	find func(ctx context.Context, name string) (v cowcommon.Volume, ok bool, err error)
	seal func(ctx context.Context, volume string) error
}

// own is how a process ends a step of its own, of which the Backend has told it.
func (l *Layers) own() ending { return ending{find: l.exists, seal: l.sealSoon} }

// endPending ends a step that has failed or was interrupted: it undoes the step, unless a snapshot or a fork is complete or the
// layer has its new content. A fork that is there stays, since somebody may be using it.
func (l *Layers) endPending(ctx context.Context, r record, end ending) error {
	if _, err := l.load(momentsDir, r.Volume); !errdefs.IsNotFound(err) {
		if err == nil {
			err = l.forget(pendingDir, r.Volume) // it had ended
		}
		return err
	}
	if !r.Replaced.IsZero() {
		_, done, err := l.endReplace(ctx, r, end)
		if errors.Is(err, errSealed) { // it is undone
			err = nil
		}
		if err != nil || done {
			return err
		}
	}
	forks, err := l.forksThere(ctx, r, func(name string) (cowcommon.Volume, error) {
		v, _, err := end.find(ctx, name)
		return v, err
	})
	if err != nil {
		return err
	}
	r.Forks = forks
	v, _, err := end.find(ctx, r.Volume)
	if err != nil {
		return err
	}
	if r.Replaced.IsZero() && v.Sealed && (len(forks) > 0 || r.Name != "") {
		layer, _, err := end.find(ctx, r.Layer)
		if err == nil {
			_, err = l.commit(l.holding(ctx, r, layer))
		}
		return err
	}
	if err := l.backend.Remove(ctx, r.Volume); err != nil {
		return err
	}
	return l.forget(pendingDir, r.Volume)
}

// Delete deletes the directory of the records, if there are no moments. Foreign files in it stay, and are an error.
func (l *Layers) Delete(ctx context.Context) (err error) {
	unlock, err := l.alone(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := l.sweep(ctx); err != nil {
		return err
	}
	for _, name := range []string{momentsDir, pendingDir, hooksDir, schedulesDir, namedDir, namesFile, contentFile, lockFile, "."} {
		if err := os.Remove(l.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Unfinished reports whether a step that may give a layer its name back has not ended yet. Until then the layer may
// have no name.
func (l *Layers) Unfinished(layer string) (bool, error) {
	pending, err := l.recorded(pendingDir, tag(layer))
	return len(pending) > 0, err
}
