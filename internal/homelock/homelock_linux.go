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

// Take locks a home, which every process that has it open holds shared. A process that is alone first calls alone,
// which may remove temporary files: others wait for its end. The caller releases the file with flock.Release. Take
// may return a file with an error too.
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

// Share locks a home that is only read, so that nobody removes files in use there as left over. If there is no lock
// file, since only other programs have had the home open, Share makes none and the file is nil.
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
