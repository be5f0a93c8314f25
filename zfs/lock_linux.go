package zfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/namelock"
)

// A process that uses a volume's dataset has the lock of its name shared. A process that makes the volume, or changes it as
// a whole, has the lock exclusively. Beside volumes, datasets in staging have such locks. By these, remains of a killed
// process can be told from a dataset that is being made.

// lockPresence makes this Backend present.
func (l layout) lockPresence() (namelock.Lock, error) {
	return namelock.Present(filepath.Join(l.home, claimsName))
}

// tryLockVolume locks a volume exclusively. ok is false if somebody has the lock.
func (l layout) tryLockVolume(name string) (_ namelock.Lock, ok bool, err error) {
	return namelock.TryExclusive(filepath.Join(l.home, claimsName), name)
}

// lockShared locks a volume shared. It waits for others to end their changes, which takes milliseconds.
func (l layout) lockShared(ctx context.Context, name string) (namelock.Lock, error) {
	return namelock.Shared(ctx, filepath.Join(l.home, claimsName), name)
}

// inHome takes a lock whose file may be in the pool, so that opening it may wait for the pool. If it is left to itself, the lock
// is given up at its end.
func inHome[T any](ctx context.Context, b *Backend, lock func() (T, error), unlock func(T) error) (T, error) {
	var taken, none T
	var failed error
	err := b.change(ctx, step{
		op:       "lock",
		do:       func(kernel) error { taken, failed = lock(); return failed },
		happened: func(context.Context) (bool, error) { return failed == nil, nil },
		undo:     func(context.Context) error { return unlock(taken) },
	})
	if err != nil { // then the call may still write to taken
		return none, err
	}
	return taken, nil
}

// claimVolume is tryLockVolume for a home that may be in the pool.
func (b *Backend) claimVolume(ctx context.Context, name string) (lock namelock.Lock, ok bool, err error) {
	lock, err = inHome(ctx, b, func() (lock namelock.Lock, err error) {
		lock, _, err = b.tryLockVolume(name)
		return lock, err
	}, unlockTaken)
	return lock, lock.File != nil, err
}

// shareVolume is lockShared for a home that may be in the pool.
func (b *Backend) shareVolume(ctx context.Context, name string) (namelock.Lock, error) {
	return inHome(ctx, b, func() (namelock.Lock, error) { return b.lockShared(ctx, name) }, unlockTaken)
}

// claimLimit is lockLimit for a home that may be in the pool.
func (b *Backend) claimLimit(ctx context.Context, name string) (unlock func() error, err error) {
	return inHome(ctx, b, func() (func() error, error) { return b.lockLimit(ctx, name) }, func(unlock func() error) error { return unlock() })
}

// unlockTaken gives up a lock, unless somebody else has it.
func unlockTaken(lock namelock.Lock) error {
	if lock.File == nil {
		return nil
	}
	return lock.Unlock(nil)
}

// lockLimit locks the limit of a volume, or of a removed one, in all processes. It waits for others to end their changes. The
// users of the volume do not matter.
func (l layout) lockLimit(ctx context.Context, name string) (unlock func() error, err error) {
	return namelock.All(ctx, filepath.Join(l.home, claimsName), namelock.Want{Name: "limit of " + name, Exclusive: true})
}

// A view's lock is a file of its own in the directory locks, so that the view is known after its process has gone. A
// process that finds the lock free may remove the view, with the file.

// tryLockView takes the lock of a view exclusively. ok is false if somebody has the lock.
func (l layout) tryLockView(name string) (_ *os.File, ok bool, err error) {
	for {
		f, err := os.OpenFile(filepath.Join(l.locks, name), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, false, err
		}
		free, err := flock.TryExclusive(f)
		if err == nil && !free {
			return nil, false, f.Close()
		}
		current := false
		if err == nil {
			current, err = flock.IsAt(f, f.Name())
		}
		if current {
			return f, true, nil
		}
		if err := errors.Join(err, flock.Release(f)); err != nil {
			return nil, false, err
		}
	}
}

// lockView is tryLockView for a home that may be in the pool: the file may wait for the pool.
func (b *Backend) lockView(ctx context.Context, name string) (*os.File, bool, error) {
	var f *os.File
	var ok bool
	err := b.change(ctx, step{
		op:       "lock",
		do:       func(kernel) (err error) { f, ok, err = b.tryLockView(name); return err },
		happened: func(context.Context) (bool, error) { return f != nil, nil },
		undo:     func(ctx context.Context) error { return b.unlockView(ctx, f, true) },
	})
	if err != nil { // then the call may still write to f
		return nil, false, err
	}
	return f, ok, nil
}

// unlockView gives up the lock of a view, and deletes its file if the view is gone. f is nil for a view without a lock.
func (b *Backend) unlockView(ctx context.Context, f *os.File, gone bool) (err error) {
	if f == nil {
		return nil
	}
	if gone {
		err = b.change(ctx, step{op: "unlock", do: func(kernel) error { return os.Remove(f.Name()) }, happened: isAbsentAt(f.Name())})
	}
	return errors.Join(err, b.after(err, func() error { return flock.Release(f) }))
}

// files lists a directory of the home, which may be in the pool.
func (b *Backend) files(ctx context.Context, dir string) ([]os.DirEntry, error) {
	return read(ctx, b.zfs, "list", func(kernel) ([]os.DirEntry, error) { return os.ReadDir(dir) })
}
