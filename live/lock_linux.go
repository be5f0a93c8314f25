package live

import (
	"context"
	"os"

	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/namelock"
)

// lock is an advisory lock on a file, which the kernel releases with the process.
type lock struct{ f *os.File }

func openLock(path string) (*lock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &lock{f}, nil
}

func (l *lock) shared(ctx context.Context) error    { return flock.Shared(ctx, l.f) }
func (l *lock) exclusive(ctx context.Context) error { return flock.Exclusive(ctx, l.f) }
func (l *lock) tryExclusive() (bool, error)         { return flock.TryExclusive(l.f) }
func (l *lock) close() error                        { return flock.Release(l.f) }

// lockName locks a name exclusively, by a byte of the file path.
func lockName(ctx context.Context, path, name string) (unlock func() error, err error) {
	return namelock.All(ctx, path, namelock.Want{Name: name, Exclusive: true})
}
