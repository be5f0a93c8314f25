package image

import (
	"context"
	"errors"
	"os"

	"github.com/cowshed/cowshed/internal/flock"
)

// lock is an advisory lock on a file (flock(2)), which the kernel releases with the process. Without a file it is held
// by everyone who asks.
type lock struct{ f *os.File }

// errLocked says that someone else holds the lock.
var errLocked = errors.New("locked")

func openLock(path string, flag int) (*lock, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return &lock{f}, nil
}

// shared waits until no one holds the lock exclusively, or ctx ends.
func (l *lock) shared(ctx context.Context) error {
	if l.f == nil {
		return nil
	}
	return flock.Shared(ctx, l.f)
}

// exclusive takes the lock for its holder alone. errLocked: someone else has it.
func (l *lock) exclusive() error {
	if l.f == nil {
		return nil
	}
	ok, err := flock.TryExclusive(l.f)
	if err == nil && !ok {
		err = errLocked
	}
	return err
}

// alone waits until no one else holds the lock, or ctx ends, and takes it for its holder alone.
func (l *lock) alone(ctx context.Context) error {
	if l.f == nil {
		return nil
	}
	return flock.Exclusive(ctx, l.f)
}

// close releases the lock.
func (l *lock) close() error {
	if l.f == nil {
		return nil
	}
	return flock.Release(l.f)
}
