package live

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layerstream"
	"github.com/cowshed/cowshed/internal/dirlist"
)

// ForkOptions says how forks are made.
type ForkOptions struct {
	Volume cowcommon.VolumeOptions
	// Fork has the facts about each fork, except its name.
	Fork Fork
}

// Fork makes each of names a layer with the content of source as it is now. source is a layer, in use or not, or the volume
// of a moment. All names are of the same moment. If Fork fails, none of them is left. A crash may leave some, which are
// complete. Returns ErrNotImplemented if the Backend cannot take the moment of such a layer. Returns ErrInvalidArgument if a label is
// not UTF-8 or has control characters. Returns ErrInvalidArgument if source is a moment of a layer that is gone, and a fork would have
// that layer's name.
func (l *Layers) Fork(ctx context.Context, source string, names []string, opts ForkOptions) (m Moment, err error) {
	for _, name := range names {
		if IsMoment(name) {
			return m, fault.New(errdefs.ErrInvalidArgument, "layer name %s is of the form that moments have; choose another", name)
		}
	}
	if err := checkLabelSize(opts.Fork.Labels, len(names)); err != nil {
		return m, err
	}
	for key, value := range opts.Fork.Labels {
		if !layerstream.IsLabel(key) || !layerstream.IsLabel(value) {
			return m, fault.New(errdefs.ErrInvalidArgument, "label %q=%q is not UTF-8 or has control characters", key, value)
		}
	}
	unlock, err := l.begin(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	r, of, err := l.momentOf(ctx, source)
	if err != nil {
		return m, err
	}
	err = l.checkNamesOver(ctx, r.Layer, names)
	if err == nil {
		err = l.newLayers(ctx, names...)
	}
	if err != nil {
		return m, fault.Wrap("fork layer", source, err)
	}
	for _, name := range names {
		fork := opts.Fork
		fork.Name = name
		r.Forks = append(r.Forks, fork)
	}
	if err := l.save(pendingDir, r); err != nil {
		return m, err
	}
	if err := l.take(ctx, r, source, opts.Volume); err != nil {
		return m, err
	}
	return l.commitTaken(ctx, r, of)
}

// CheckParent checks whether the caller can make a new layer of that name from parent. Returns ErrInvalidArgument if
// parent is a moment of a former layer of that name. Returns ErrAlreadyExists if that layer is there.
func (l *Layers) CheckParent(ctx context.Context, name, parent string) error {
	if !IsMoment(parent) {
		return nil
	}
	r, err := l.load(momentsDir, parent)
	if errdefs.IsNotFound(err) { // then it is a volume as any other
		return nil
	}
	if err != nil {
		return err
	}
	return l.checkNamesOver(ctx, r.Layer, []string{name})
}

// checkNamesOver refuses layers made from a moment that have the name of the moment's layer, which is gone. Such a layer would be
// the former one again, after a rollback, with its base, and no fork that expires. Returns ErrAlreadyExists if the layer is there.
func (l *Layers) checkNamesOver(ctx context.Context, layer string, names []string) error {
	if !slices.Contains(names, layer) {
		return nil
	}
	if err := l.checkFree(ctx, []string{layer}); err != nil {
		return err
	}
	return fault.New(errdefs.ErrInvalidArgument, "a layer made from a moment of the former layer %s cannot have its name: choose another", layer)
}

// checkLabelSize refuses labels for which the record of a moment with so many forks would be too large. It would be made first
// otherwise.
func checkLabelSize(labels map[string]string, forks int) error {
	size := 0
	for key, value := range labels {
		size += len(key) + len(value)
	}
	if size > maxRecordSize/max(forks, 1) {
		return fault.New(errdefs.ErrInvalidArgument, "labels of %d bytes for each of %d forks: at most %d fit", size, forks, maxRecordSize)
	}
	return nil
}

// momentOf describes a new moment of a layer, which it returns too, or of the layer of another moment.
func (l *Layers) momentOf(ctx context.Context, source string) (r record, of cowcommon.Volume, err error) {
	if IsMoment(source) {
		from, err := l.load(momentsDir, source)
		r = newMoment(from.Layer, from.Base)
		r.Held, r.Of = from.Held, from.Of
		return r, of, err
	}
	of, base, err := l.stat(ctx, source)
	return newMoment(source, base), of, err
}

// commitTaken records a moment that was made of a volume. That is the zero Volume if it was made of another moment.
func (l *Layers) commitTaken(ctx context.Context, r record, of cowcommon.Volume) (Moment, error) {
	if of.Limit.Bytes == 0 {
		return l.commitMade(r)
	}
	return l.commit(l.holding(ctx, r, of))
}

// take makes the volume of a recorded moment and its forks. If it fails, it leaves nothing.
func (l *Layers) take(ctx context.Context, r record, source string, opts cowcommon.VolumeOptions) error {
	names := make([]string, 0, len(r.Forks))
	for _, fork := range r.Forks {
		names = append(names, fork.Name)
	}
	err := cowcommon.Fork(ctx, l.backend, source, r.Volume, names, opts)
	if err != nil {
		err = errors.Join(err, l.endPending(context.WithoutCancel(ctx), r, l.own()))
	}
	return err
}

// SnapshotOptions says how a snapshot is made.
type SnapshotOptions struct {
	Message string
	// Hooks are run around the snapshot.
	Hooks Hooks

	schedule string // that takes it
}

// Snapshot keeps the content of a layer as it is now, in use or not. Without a name the snapshot gets one. Returns
// ErrAlreadyExists if the layer has a snapshot of that name, and ErrAborted if a hook fails. If the hook after the snapshot fails,
// Snapshot returns the snapshot too, which stays.
//
// A hook that is to be run after the snapshot is recorded before the first begins. If this process ends meanwhile, EndHooks runs it.
func (l *Layers) Snapshot(ctx context.Context, layer, name string, opts SnapshotOptions) (m Moment, err error) {
	if name != "" {
		if err := cowcommon.CheckID(name); err != nil {
			return m, fmt.Errorf("snapshot: %w", err)
		}
	}
	if err := l.checkRunnable(layer, opts.Hooks); err != nil {
		return m, err
	}
	if opts.Hooks.none() {
		return l.snapshot(ctx, layer, name, opts)
	}
	return l.snapshotWithHooks(ctx, layer, name, opts)
}

func (l *Layers) snapshot(ctx context.Context, layer, name string, opts SnapshotOptions) (m Moment, err error) {
	unlock, err := l.begin(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if IsMoment(layer) {
		return m, fault.New(errdefs.ErrInvalidArgument, "%s is a snapshot itself", layer)
	}
	r, of, err := l.momentOf(ctx, layer)
	if err != nil {
		return m, err
	}
	r.Message, r.Schedule = opts.Message, opts.schedule
	err = l.named(ctx, &r, name, "snapshot", func() error { return l.save(pendingDir, r) })
	if err != nil {
		return m, err
	}
	if err := l.take(ctx, r, layer, cowcommon.VolumeOptions{}); err != nil {
		return m, err
	}
	return l.commitTaken(ctx, r, of)
}

// commitNamed is commit of a snapshot whose name is prefix with the next free number.
func (l *Layers) commitNamed(ctx context.Context, r record, prefix string) (m Moment, err error) {
	err = l.named(ctx, &r, "", prefix, func() error {
		m, err = l.commit(r)
		return err
	})
	return m, err
}

// named gives a snapshot a name of its own, and calls save before others can take the name. If name is "", it is prefix with
// the next free number.
func (l *Layers) named(ctx context.Context, r *record, name, prefix string, save func() error) (err error) {
	lock, err := l.lockAlone(ctx, namesFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	// In this order, since records go from the one to the other.
	others, err := l.recordsOf(pendingDir, r.Layer)
	if err != nil {
		return err
	}
	others = slices.DeleteFunc(others, func(o record) bool { return !o.Replaced.IsZero() }) // their names are prefixes
	ended, err := l.recordsOf(momentsDir, r.Layer)
	if err != nil {
		return err
	}
	others = append(others, ended...)
	taken := func(name string) bool {
		return slices.ContainsFunc(others, func(o record) bool { return o.Name == name })
	}
	if name != "" && taken(name) {
		return fault.New(errdefs.ErrAlreadyExists, "layer %s has a snapshot %s already", r.Layer, name)
	}
	for i := 1; name == ""; i++ {
		if next := fmt.Sprintf("%s-%d", prefix, i); !taken(next) {
			name = next
		}
	}
	r.Name = name
	if err := l.markNamed(r.Layer); err != nil {
		return err
	}
	return save()
}

// Snapshots lists the snapshots of a layer, oldest first.
func (l *Layers) Snapshots(_ context.Context, layer string) ([]Moment, error) {
	moments, err := l.list(layer, dirlist.Read)
	return slices.DeleteFunc(moments, func(m Moment) bool { return m.Name == "" }), err
}

// CountSnapshots is the number of snapshots of several layers. It reads no records of other layers.
func (l *Layers) CountSnapshots(_ context.Context, layers []string) (n int, err error) {
	of := make(map[string]map[string]bool, len(layers)) // by tag, which two layers may share
	for _, layer := range layers {
		t := tag(layer)
		if of[t] == nil {
			of[t] = make(map[string]bool)
		}
		of[t][layer] = true
	}
	volumes, err := l.recorded(momentsDir, "")
	if err != nil {
		return 0, err
	}
	for _, volume := range volumes {
		named := of[tagOf(volume)]
		if named == nil {
			continue
		}
		r, err := l.load(momentsDir, volume)
		switch {
		case errdefs.IsNotFound(err): // it has just gone
		case err != nil:
			l.log.Warn("the record of a moment cannot be read, and does not count", "error", err)
		case r.Name != "" && named[r.Layer]:
			n++
		}
	}
	return n, nil
}

// Moments lists the moments of a layer, oldest first: its snapshots, and those that exist for its forks alone.
func (l *Layers) Moments(_ context.Context, layer string) ([]Moment, error) {
	return l.list(layer, dirlist.Read)
}

func (l *Layers) list(layer string, read readDir) ([]Moment, error) {
	volumes, err := l.recordedBy(read, momentsDir, tag(layer))
	moments := make([]Moment, 0, len(volumes))
	for _, r := range l.loadAll(momentsDir, volumes) {
		if r.Layer == layer {
			moments = append(moments, r.Moment)
		}
	}
	return moments, err
}

// Get returns a snapshot of a layer. Returns ErrNotFound if there is no such snapshot.
func (l *Layers) Get(layer, name string) (Moment, error) {
	m, err := l.get(layer, name, os.ReadDir)
	if errdefs.IsNotFound(err) {
		m, err = l.get(layer, name, dirlist.Read)
	}
	return m, err
}

func (l *Layers) get(layer, name string, read readDir) (Moment, error) {
	moments, err := l.list(layer, read)
	if err != nil {
		return Moment{}, err
	}
	if i := slices.IndexFunc(moments, func(m Moment) bool { return m.Name == name && name != "" }); i >= 0 {
		return moments[i], nil
	}
	return Moment{}, fault.New(errdefs.ErrNotFound, "layer %s has no snapshot %s", layer, name)
}

// Moment returns the moment whose content a volume has. Returns ErrNotFound if there is none.
func (l *Layers) Moment(volume string) (Moment, error) {
	r, err := l.load(momentsDir, volume)
	return r.Moment, err
}

// Cut splits a reference LAYER@SNAPSHOT.
func Cut(ref string) (layer, snapshot string, ok bool) { return strings.Cut(ref, "@") }

// RemoveSnapshot removes a snapshot. Its forks stay.
func (l *Layers) RemoveSnapshot(ctx context.Context, layer, name string) (err error) {
	unlock, err := l.alone(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	m, err := l.Get(layer, name)
	if err != nil {
		return err
	}
	// A full filesystem may have no room for a new record.
	if gone, err := l.removeUnneeded(ctx, m.Volume); err != nil || gone {
		return err
	}
	if err := l.dropName(record{Version: recordVersion, Moment: m}); err != nil {
		return err
	}
	if err := l.sweep(ctx); err != nil { // the snapshot has gone
		l.log.Warn("expired forks or moments stay", "error", err)
	}
	return nil
}
