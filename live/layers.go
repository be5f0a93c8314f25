package live

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/poll"
)

// Layers are the layers of a Backend, with their moments.
type Layers struct {
	backend  cowcommon.Backend
	comparer *cowcommon.Comparer
	dir      string
	log      *slog.Logger
	kept     kept
	process  func(ctx context.Context, volume string) (pid uint32, err error) // nil: nobody knows

	containers Containers

	left atomic.Bool // of HasLeft
	told sync.Map    // why volumes stay, by volume, as the log has it
}

// New returns the layers of a Backend whose moments are recorded in the directory dir. The first moment makes dir. Each
// Backend needs a directory of its own: a Sweep deletes the records of moments that its Backend does not have. A nil log
// stands for slog.Default().
func New(backend cowcommon.Backend, dir string, log *slog.Logger) *Layers {
	if log == nil {
		log = slog.Default()
	}
	return &Layers{backend: backend, comparer: cowcommon.NewComparer(backend, user.IdentityMapping{}, log), dir: dir, log: log}
}

// Files in the directory.
const (
	lockFile    = ".lock"
	namesFile   = ".names"
	contentFile = ".content" // a byte of it for each layer
	momentsDir  = "moments"  // one record per moment
	pendingDir  = "pending"  // one record per step that has not ended
	hooksDir    = "hooks"    // one record per post command that has not ended

	schedulesDir = "schedules" // one record per schedule
	namedDir     = "named"     // one empty file per tag of which a moment may have a name
)

func (l *Layers) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

// begin keeps others from cleaning up until unlock is called. If nobody else is at work, it first ends the steps that a
// crash interrupted.
func (l *Layers) begin(ctx context.Context) (unlock func() error, err error) {
	lock, err := l.openLock(lockFile)
	if err != nil {
		return nil, err
	}
	alone, err := lock.TryExclusive()
	if err == nil && alone {
		err = l.endInterrupted(ctx)
	}
	if err == nil {
		err = lock.Shared(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock.Close, nil
}

// alone waits until nobody else is at work, and keeps others away until unlock is called.
func (l *Layers) alone(ctx context.Context) (unlock func() error, err error) {
	lock, err := l.lockAlone(ctx, lockFile)
	if err != nil {
		return nil, err
	}
	if err := l.endInterrupted(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock.Close, nil
}

// lockAlone waits until no other process has a lock, and takes it.
func (l *Layers) lockAlone(ctx context.Context, name string) (*flock.Lock, error) {
	lock, err := l.openLock(name)
	if err != nil {
		return nil, err
	}
	if err := lock.Exclusive(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// lockContent keeps other rollbacks and merges, of all processes, from giving a layer another content, until unlock is called. It waits
// while one is at work. The caller has called begin. Nothing that only reads a layer, or takes a snapshot of it, waits for the lock.
func (l *Layers) lockContent(ctx context.Context, layer string) (unlock func() error, err error) {
	return namelock.All(ctx, l.path(contentFile), namelock.Want{Name: layer, Exclusive: true})
}

func (l *Layers) openLock(name string) (*flock.Lock, error) {
	dirs := []string{l.dir, l.path(momentsDir), l.path(pendingDir)}
	if _, err := os.Lstat(l.path(momentsDir)); errors.Is(err, fs.ErrNotExist) {
		dirs = slices.Insert(dirs, 1, l.path(namedDir)) // it lacks no mark, since there are no moments
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return flock.Open(l.path(name), os.O_CREATE|os.O_RDWR)
}

// Base returns the volume from which a layer's changes count: the image or moment that it was made from, "" for none. That
// is its Parent, unless the layer got its content by a rollback or a merge. The changes of a moment count from where those of
// its layer did.
func (l *Layers) Base(ctx context.Context, v cowcommon.Volume) (string, error) {
	moment := v.Parent
	if IsMoment(v.Name) {
		moment = v.Name
	}
	if !IsMoment(moment) {
		return v.Parent, nil
	}
	m, err := l.load(momentsDir, moment)
	switch {
	case errdefs.IsNotFound(err):
		return v.Parent, nil
	case err != nil:
		return "", err
	case moment != v.Name && m.Layer != v.Name: // a fork
		return v.Parent, nil
	case m.Base == "":
		return "", nil
	}
	if _, there, err := l.exists(ctx, m.Base); err != nil || !there {
		return "", err
	}
	return m.Base, nil
}

// ForkedFrom returns the moment from which a layer was forked. Returns ErrNotFound if the layer is no fork.
func (l *Layers) ForkedFrom(ctx context.Context, v cowcommon.Volume) (Moment, error) {
	base, err := l.Base(ctx, v)
	if err != nil {
		return Moment{}, err
	}
	if IsMoment(v.Name) || !IsMoment(base) {
		return Moment{}, fault.New(errdefs.ErrNotFound, "layer %s is no fork", v.Name)
	}
	return l.Moment(base)
}

// isFork reports whether a volume is a fork of a moment. It may have got its content by a rollback or a merge since. The zero
// Volume is none.
func (l *Layers) isFork(ctx context.Context, v cowcommon.Volume, moment string) (bool, error) {
	base, err := l.Base(ctx, v)
	return base == moment, err
}

// stat describes a layer, and returns its base.
func (l *Layers) stat(ctx context.Context, layer string) (v cowcommon.Volume, base string, err error) {
	if v, err = l.statNamed(ctx, layer); err == nil {
		base, err = l.Base(ctx, v)
	}
	return v, base, err
}

// statNamed describes a volume, which may have no name for a moment.
func (l *Layers) statNamed(ctx context.Context, name string) (v cowcommon.Volume, err error) {
	err = l.WhileNameless(ctx, name, func() error {
		v, err = l.backend.Stat(ctx, name)
		return err
	})
	return v, err
}

// WhileNameless calls look, and again while it returns ErrNotFound because a replacement of the layer is between two renames. It gives
// up after a few seconds: if the replacement was interrupted, a later command gives the name back.
func (l *Layers) WhileNameless(ctx context.Context, layer string, look func() error) error {
	pauses := poll.Pauses{First: time.Millisecond, Longest: 50 * time.Millisecond, AtMost: 5 * time.Second}
	err := look()
	if !errdefs.IsNotFound(err) {
		return err
	}
	return poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		unfinished, err := l.Unfinished(layer)
		if err != nil {
			return false, err
		}
		err = look() // after that, since a step that has ended has given the name back
		return unfinished && errdefs.IsNotFound(err), err
	})
}

// exists reports whether there is a volume of that name, and describes it.
func (l *Layers) exists(ctx context.Context, name string) (v cowcommon.Volume, ok bool, err error) {
	v, err = l.backend.Stat(ctx, name)
	if errdefs.IsNotFound(err) {
		return v, false, nil
	}
	return v, err == nil, err
}
