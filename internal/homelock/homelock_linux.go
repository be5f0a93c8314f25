// Package homelock tells processes that have the same home of a driver open of each other.
package homelock

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Name is the name of the lock file in the home.
const Name = "lock"

// Take locks a home. Whoever has a home open holds the lock shared, so one that gets it exclusively is alone, and may
// take temporary things for left over; it then makes the lock shared. The caller closes the file, which may be there
// with an error too.
func Take(home string) (lock *os.File, alone bool, err error) {
	lock, err = os.OpenFile(filepath.Join(home, Name), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, false, err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		// It may be held exclusively by one that is recovering: wait for that to end.
		return lock, false, unix.Flock(int(lock.Fd()), unix.LOCK_SH)
	}
	return lock, err == nil, err
}
