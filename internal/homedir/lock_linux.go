package homedir

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/flock"
)

// Lock locks a home. Every process that has the home open has the lock shared. A process that finds itself alone first
// calls alone, which may remove temporary files; others wait for its end. The caller releases the file with
// flock.Release. Lock may return a file together with an error.
func Lock(ctx context.Context, home string, alone func(context.Context) error) (lock *os.File, err error) {
	lock, err = os.OpenFile(LockFile(home), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	isAlone, err := flock.TryExclusive(lock)
	if isAlone {
		err = alone(ctx)
	}
	if err != nil {
		return lock, err
	}
	return lock, flock.Shared(ctx, lock)
}

// LockToRead locks a home that is only read, so that nobody removes files in use there as left over. If there is no
// lock file, since only other programs have had the home open, LockToRead makes none and the file is nil.
func LockToRead(ctx context.Context, home string) (lock *os.File, err error) {
	lock, err = os.OpenFile(LockFile(home), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return lock, flock.Shared(ctx, lock)
}
