// Package homelock tells processes that have the same home of a driver open of each other.
package homelock

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/flock"
)

// Name is the name of the lock file in the home.
const Name = "lock"

// Take locks a home, which whoever has it open holds shared. One that is alone calls alone first, which may take
// temporary things for left over: others wait for its end. The caller releases the file with flock.Release;
// it may be there with an error too.
func Take(home string, alone func() error) (lock *os.File, err error) {
	lock, err = os.OpenFile(filepath.Join(home, Name), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	isAlone, err := flock.TryExclusive(lock)
	if isAlone {
		err = alone()
	}
	if err != nil {
		return lock, err
	}
	return lock, flock.Shared(lock)
}

// Share locks a home that is only read, so that nobody takes what is in use there for left over. Where there is no lock
// file, as nobody but another program has ever had the home open, and none is made: the file is nil.
func Share(home string) (lock *os.File, err error) {
	lock, err = os.OpenFile(filepath.Join(home, Name), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return lock, flock.Shared(lock)
}
