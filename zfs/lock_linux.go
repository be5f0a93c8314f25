package zfs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/poll"
)

// A volume's lock is one byte of the empty file claims, so it needs no space. A process that uses the volume's dataset
// has the lock shared. A process that makes the volume, or changes it as a whole, has the lock exclusively. The kernel
// releases the locks of a process that has ended, once its last call has ended too.

// Beside volumes, datasets in staging have such locks. By these, remains of a killed process can be told from a dataset
// that is being made. And each Backend has one byte shared.

// presenceAt is the byte that each Backend has locked shared while it has the home open. No volume has it.
const presenceAt = 1 << 62

// lockPresence makes this Backend present.
func (l layout) lockPresence() (volumeLock, error) {
	lock, err := l.openVolumeLock("")
	if err != nil {
		return volumeLock{}, err
	}
	lock.at = presenceAt
	if ok, err := lock.try(unix.F_RDLCK); !ok {
		return volumeLock{}, errors.Join(err, fmt.Errorf("lock %s: somebody else has it exclusively", lock.Name()), lock.Close())
	}
	return lock, nil
}

// isAlone reports whether nobody else has the lock, without a change of it.
func (l volumeLock) isAlone() (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: l.at, Len: 1}
	err := eintr.Ignore(func() error { return unix.FcntlFlock(l.Fd(), unix.F_OFD_GETLK, &lock) })
	if err != nil {
		return false, &os.PathError{Op: "look at lock", Path: l.Name(), Err: err}
	}
	return lock.Type == unix.F_UNLCK, nil
}

// volumeLock is the lock of a volume. It is kept while the file is open.
type volumeLock struct {
	*os.File
	at int64 // the byte
}

// openVolumeLock opens the lock of a volume, without taking it. Locks of one open file do not exclude each other, so
// each lock has an open file of its own.
func (l layout) openVolumeLock(name string) (volumeLock, error) {
	f, err := os.OpenFile(filepath.Join(l.home, claimsName), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	sum := sha256.Sum256([]byte(name))
	return volumeLock{f, int64(binary.LittleEndian.Uint64(sum[:8]) >> 2)}, err
}

// try locks, converts or unlocks. ok is false if somebody else has the lock.
func (l volumeLock) try(how int16) (ok bool, err error) {
	err = eintr.Ignore(func() error {
		lock := unix.Flock_t{Type: how, Start: l.at, Len: 1}
		return unix.FcntlFlock(l.Fd(), unix.F_OFD_SETLK, &lock)
	})
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "lock", Path: l.Name(), Err: err}
	}
	return true, nil
}

// tryLockVolume locks a volume exclusively. ok is false if somebody has the lock.
func (l layout) tryLockVolume(name string) (_ volumeLock, ok bool, err error) {
	lock, err := l.openVolumeLock(name)
	if err != nil {
		return volumeLock{}, false, err
	}
	if ok, err = lock.try(unix.F_WRLCK); !ok {
		return volumeLock{}, false, errors.Join(err, lock.Close())
	}
	return lock, true, nil
}

// lockShared locks a volume shared. It waits for others to end their changes, which takes milliseconds.
func (l layout) lockShared(ctx context.Context, name string) (volumeLock, error) {
	lock, err := l.openVolumeLock(name)
	if err != nil {
		return volumeLock{}, err
	}
	ok := false
	err = poll.WhileBusy(ctx, poll.Pauses{First: time.Millisecond, Longest: 50 * time.Millisecond}, func() (busy bool, err error) {
		ok, err = lock.try(unix.F_RDLCK)
		return !ok && err == nil, err
	})
	if ok {
		return lock, nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("another process changes it: %w", err)
	}
	return volumeLock{}, errors.Join(err, lock.Close())
}

// unlock gives up a lock. If nobody else has it then, unlock takes it exclusively, and so keeps others out while it
// calls alone. Closing the file is not enough: a child that is being forked may have it open.
func (l volumeLock) unlock(alone func() error) (err error) {
	defer func() { err = errors.Join(err, l.Close()) }()
	// Unlock first: otherwise two callers at once would each find the lock of the other, and neither would call alone.
	_, err = l.try(unix.F_UNLCK)
	if alone == nil {
		return nil // if that has failed, closing the file unlocks
	}
	if err != nil {
		return err
	}
	if ok, err := l.try(unix.F_WRLCK); !ok {
		return err
	}
	err = alone()
	_, _ = l.try(unix.F_UNLCK)
	return err
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
		current, err := isCurrent(f, err)
		if current {
			return f, true, nil
		}
		if err := errors.Join(err, flock.Release(f)); err != nil {
			return nil, false, err
		}
	}
}

// unlockView gives up the lock of a view. It calls gone first, and deletes the file unless gone fails. f is nil for a
// view without a lock, and gone may be nil.
func (l layout) unlockView(f *os.File, gone func() error) (err error) {
	if f == nil && gone == nil {
		return nil
	}
	if f == nil {
		return gone()
	}
	defer func() { err = errors.Join(err, flock.Release(f)) }()
	if gone != nil {
		if err := gone(); err != nil {
			return err
		}
	}
	return os.Remove(f.Name())
}

// isCurrent reports whether f is still the file of its name. f was just locked, unless err says that this failed. The
// last holder of the lock may have deleted the file.
func isCurrent(f *os.File, err error) (bool, error) {
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	var own, named unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &own); err != nil {
		return false, err
	}
	err = unix.Lstat(f.Name(), &named)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && own.Ino == named.Ino && own.Dev == named.Dev, err
}
