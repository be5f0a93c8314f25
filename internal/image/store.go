package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/flock"
)

// Store keeps images: their layers in a driver, and in a directory of its own the records of them.
//
// Several processes may work on a store at once. While one removes images, none can import or export.
type Store struct {
	driver *cowdriver.Driver
	dir    string
	log    *slog.Logger
	base   BaseFunc
}

// BaseFunc returns the volume from which the changes of a layer count, "" for none.
type BaseFunc func(ctx context.Context, layer cowcommon.Volume) (string, error)

// NewStore returns the store of the images whose layers driver has and whose records are in dir, which is
// made when the first image is. A nil log stands for slog.Default().
func NewStore(dir string, driver *cowdriver.Driver, log *slog.Logger) *Store {
	if log == nil {
		log = slog.Default()
	}
	parent := func(_ context.Context, layer cowcommon.Volume) (string, error) { return layer.Parent, nil }
	return &Store{driver: driver, dir: dir, log: log, base: parent}
}

// WithBase returns a store of the same images, in which base says from which volume the changes of a layer count. In others
// that is its parent.
func (s *Store) WithBase(base BaseFunc) *Store {
	with := *s
	with.base = base
	return &with
}

// Files in a store's directory.
const (
	lockFile    = ".lock"
	recordsDir  = "records"  // one file per image
	tarSplitDir = "tarsplit" // one file per layer that was imported

	splitSuffix     = ".json.zst"
	temporaryPrefix = ".new-" // of files that are not complete yet
)

// lock opens the store's lock, which is not held yet. On a read-only filesystem it locks an existing lock file, and
// otherwise nothing.
func (s *Store) lock() (*flock.Lock, error) {
	l, err := s.makeLock()
	if !errors.Is(err, syscall.EROFS) {
		return l, err
	}
	l, err = flock.Open(s.path(lockFile), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return &flock.Lock{}, nil
	}
	return l, err
}

func (s *Store) makeLock() (*flock.Lock, error) {
	for _, dir := range []string{s.dir, s.path(recordsDir), s.path(tarSplitDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return flock.Open(s.path(lockFile), os.O_CREATE|os.O_RDWR)
}

// errLocked says that someone else holds a lock.
var errLocked = errors.New("locked")

// takeAlone takes a lock for its holder alone. Returns errLocked if someone else has it.
func takeAlone(l *flock.Lock) error {
	ok, err := l.TryExclusive()
	if err == nil && !ok {
		err = errLocked
	}
	return err
}

// lockShared keeps others from removing images until the lock is closed. alone is true if at the moment
// of locking no one else was importing.
func (s *Store) lockShared(ctx context.Context) (l *flock.Lock, alone bool, err error) {
	if l, err = s.lock(); err != nil {
		return nil, false, err
	}
	switch err := takeAlone(l); {
	case err == nil:
		return l, true, nil
	case !errors.Is(err, errLocked):
		return nil, false, errors.Join(err, l.Close())
	}
	if err := l.Shared(ctx); err != nil {
		return nil, false, errors.Join(err, l.Close())
	}
	return l, false, nil
}

// lockExclusive keeps everyone else from importing and exporting until the lock is closed.
func (s *Store) lockExclusive() (*flock.Lock, error) {
	l, err := s.lock()
	if err != nil {
		return nil, err
	}
	err = takeAlone(l)
	if errors.Is(err, errLocked) {
		err = fault.New(errdefs.ErrFailedPrecondition, "another process is importing, exporting or removing images")
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// layerExists reports whether the driver has that layer.
func (s *Store) layerExists(ctx context.Context, id string) (bool, error) {
	_, err := s.driver.Backend().Stat(ctx, id)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// Delete deletes the directory of a store that has no images. Foreign files in it stay, and are an error. Returns
// errdefs.ErrFailedPrecondition if there are images, or if another process works on the store.
func (s *Store) Delete(ctx context.Context) (err error) {
	lock, err := s.lockExclusive()
	if err != nil {
		return fmt.Errorf("delete %s: %w", s.dir, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	images, err := s.List()
	if err == nil && len(images) > 0 {
		err = fault.New(errdefs.ErrFailedPrecondition, "there are %d images", len(images))
	}
	if err == nil {
		err = s.sweep(ctx)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", s.dir, err)
	}
	var errs []error
	for _, name := range []string{recordsDir, tarSplitDir, promotionsFile, lockFile, "."} {
		if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
