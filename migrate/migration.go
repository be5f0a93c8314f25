package migrate

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Options says between which places a Migration is.
type Options struct {
	// Source is the absolute path of the source. A journal belongs to one source.
	Source string
	// Target names the target for people, such as "store /var/lib/cowshed". A journal belongs to one target.
	Target string
	// State is the directory of the journal. Migration makes it, and deletes it in the end. A target keeps its own
	// files in TargetState of it.
	State string
	// Trust leaves out the comparison of each thing with its source after it was made.
	Trust  bool
	Logger *slog.Logger // nil: slog.Default
}

// Names in the directory of the state.
const (
	lockName    = "lock"
	targetState = "target"
)

// TargetState is the directory in which a target keeps files of its own until the migration is finished or undone.
func TargetState(state string) string { return filepath.Join(state, targetState) }

// Migration moves the things of a Source to a Target. One process at a time works on it.
//
// It keeps a journal: an intent before it makes a thing, and a note when the thing is there. So a run that was
// interrupted goes on where it stopped, and Undo removes the things that runs have made, and no others.
type Migration struct {
	source Source
	target Target
	opts   Options
	log    *slog.Logger

	fault func(point string) // a test's, for the journal
}

// New makes a Migration. Its methods use the source and the target, which the caller closes.
func New(source Source, target Target, opts Options) *Migration {
	log := opts.Logger
	if log == nil {
		log = slog.Default()
	}
	return &Migration{source: source, target: target, opts: opts, log: log, fault: func(string) {}}
}

// locked calls do with the lock and the journal, which it closes.
func (m *Migration) locked(do func(*journal, *lockFile) error) (err error) {
	lock, err := lockState(m.opts.State)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	j, err := openJournal(m.opts.State, true)
	if err != nil {
		return err
	}
	j.fault = m.fault
	defer func() { err = errors.Join(err, j.close()) }()
	if err := m.check(j); err != nil {
		return err
	}
	isNew := !j.exists()
	err = do(j, lock)
	if isNew && !j.exists() { // nothing was begun
		err = errors.Join(err, lock.deleteFile())
	}
	return err
}

// resumed is locked for a migration that was begun. Returns ErrNotFound if there is none, and leaves nothing behind.
func (m *Migration) resumed(do func(*journal, *lockFile) error) error {
	if _, err := os.Lstat(m.opts.State); errors.Is(err, fs.ErrNotExist) {
		return m.notBegun()
	}
	return m.locked(func(j *journal, lock *lockFile) error {
		if !j.exists() {
			return m.notBegun()
		}
		return do(j, lock)
	})
}

// check returns ErrFailedPrecondition if the journal is of another migration.
func (m *Migration) check(j *journal) error {
	h := j.header
	switch {
	case !j.exists():
		return nil
	case h.Source != m.opts.Source:
		return fault.New(errdefs.ErrFailedPrecondition, "the journal in %s is of a migration from %s: finish or undo that one, or use --state", m.opts.State, h.Source)
	case h.Target != m.opts.Target:
		return fault.New(errdefs.ErrFailedPrecondition, "the journal in %s is of a migration to %s: finish or undo that one, or use --state", m.opts.State, h.Target)
	}
	return nil
}

// checkDriver returns ErrFailedPrecondition if the journal is of another driver of the same source.
func (m *Migration) checkDriver(j *journal, inv *Inventory) error {
	if h := j.header; j.exists() && (h.Program != inv.Program || h.Driver != inv.Driver) {
		return fault.New(errdefs.ErrFailedPrecondition, "the journal in %s is of %s's driver %s, not of %s's %s: finish or undo that migration, or use --state",
			m.opts.State, h.Program, h.Driver, inv.Program, inv.Driver)
	}
	return nil
}

func (m *Migration) notBegun() error {
	return fault.New(errdefs.ErrNotFound, "no migration from %s to %s has been run (there is no journal in %s)", m.opts.Source, m.opts.Target, m.opts.State)
}

var errFinishing = fault.New(errdefs.ErrFailedPrecondition, "finish has begun to remove the source, and can only be completed: run finish again")

// end deletes all of the state.
func (m *Migration) end(j *journal, lock *lockFile) error {
	if err := os.RemoveAll(TargetState(m.opts.State)); err != nil {
		return err
	}
	if err := j.delete(); err != nil {
		return err
	}
	return errors.Join(m.sweep(), lock.delete())
}

// sweep deletes headers of journals that a crash has left incomplete.
func (m *Migration) sweep() error {
	entries, err := os.ReadDir(m.opts.State)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+journalFile+"-") {
			err = errors.Join(err, os.Remove(filepath.Join(m.opts.State, e.Name())))
		}
	}
	return err
}

// items lists the things of an inventory, in the order of making.
func (inv *Inventory) items() []Item {
	items := make([]Item, 0, len(inv.Layers)+len(inv.Images)+len(inv.Containers))
	for i := range inv.Layers {
		items = append(items, Item{Layer: &inv.Layers[i]})
	}
	for i := range inv.Images {
		items = append(items, Item{Image: &inv.Images[i]})
	}
	for i := range inv.Containers {
		items = append(items, Item{Container: &inv.Containers[i]})
	}
	return items
}

// check returns ErrInvalidArgument if an ID of the item cannot be one.
func (i Item) check() error {
	var names []string
	var digests []digest.Digest
	switch {
	case i.Layer != nil:
		names, digests = []string{i.Layer.ID}, []digest.Digest{i.Layer.ChainID, i.Layer.DiffID}
		if i.Layer.Parent != "" {
			names = append(names, i.Layer.Parent)
		}
	case i.Image != nil:
		names, digests = i.Image.Layers, []digest.Digest{i.Image.ID}
		if i.Image.ID == "" {
			return fault.New(errdefs.ErrInvalidArgument, "an image has no ID")
		}
	case i.Container != nil:
		names, digests = []string{i.Container.ID}, []digest.Digest{i.Container.Image}
		if i.Container.Layer != "" {
			names = append(names, i.Container.Layer)
		}
	default:
		return fault.New(errdefs.ErrInvalidArgument, "it is neither a layer nor an image nor a container")
	}
	for _, name := range names {
		if err := cowcommon.CheckID(name); err != nil {
			return err
		}
	}
	for _, d := range digests {
		if err := d.Validate(); d != "" && err != nil {
			return fault.New(errdefs.ErrInvalidArgument, "digest %.80q: %w", d, err)
		}
	}
	return nil
}

// dependents finds the things that cannot come along because others do not.
type dependents struct{ missing map[key]bool }

func newDependents() *dependents { return &dependents{missing: make(map[key]bool)} }

// lost notes that an item does not come along.
func (d *dependents) lost(item Item) { d.missing[item.key()] = true }

// check returns an error if the item needs another that does not come along.
func (d *dependents) check(item Item) error {
	if err := item.check(); err != nil {
		return err
	}
	layers := []string{}
	switch {
	case item.Layer != nil:
		layers = append(layers, item.Layer.Parent)
	case item.Image != nil:
		layers = item.Image.Layers
	default:
		layers = append(layers, item.Container.Layer)
		if id := item.Container.Image.String(); d.missing[key{"image", id}] {
			return leftBehind("image", id)
		}
	}
	for _, layer := range layers {
		if d.missing[key{"layer", layer}] {
			return leftBehind("layer", layer)
		}
	}
	return nil
}
