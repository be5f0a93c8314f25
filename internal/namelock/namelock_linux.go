package namelock

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/poll"
)

// Lock is the lock of a name. It is kept while the file is open.
type Lock struct {
	*os.File
	at int64 // the byte
}

// open opens the lock of a name, without taking it. Locks of one open file do not exclude each other, so each lock has
// an open file of its own.
func open(file, name string) (Lock, error) {
	f, err := openFile(file)
	return Lock{f, byteOf(name)}, err
}

func openFile(file string) (*os.File, error) {
	return os.OpenFile(file, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
}

func byteOf(name string) int64 {
	sum := sha256.Sum256([]byte(name))
	return int64(binary.LittleEndian.Uint64(sum[:8]) >> 2)
}

// try locks, converts or unlocks. ok is false if somebody else has the lock.
func (l Lock) try(how int16) (ok bool, err error) {
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

// Share makes an exclusive lock shared, without a moment in which it is unlocked.
func (l Lock) Share() error {
	_, err := l.try(unix.F_RDLCK)
	return err
}

// TryExclusive locks a name exclusively, by a byte of file. ok is false if somebody has the lock.
func TryExclusive(file, name string) (_ Lock, ok bool, err error) {
	lock, err := open(file, name)
	if err != nil {
		return Lock{}, false, err
	}
	if ok, err = lock.try(unix.F_WRLCK); !ok {
		return Lock{}, false, errors.Join(err, lock.Close())
	}
	return lock, true, nil
}

// Shared locks a name shared, by a byte of file. It waits for others to end their changes, which takes milliseconds.
func Shared(ctx context.Context, file, name string) (Lock, error) {
	lock, err := open(file, name)
	if err == nil {
		err = lock.wait(ctx, func() (bool, error) { return lock.try(unix.F_RDLCK) })
	}
	return lock, err
}

// Either locks a name exclusively if nobody else has it, and else shared. It waits while somebody has it exclusively.
func Either(ctx context.Context, file, name string) (lock Lock, alone bool, err error) {
	lock, err = open(file, name)
	if err == nil {
		err = lock.wait(ctx, func() (ok bool, err error) {
			if alone, err = lock.try(unix.F_WRLCK); alone || err != nil {
				return alone, err
			}
			return lock.try(unix.F_RDLCK)
		})
	}
	return lock, alone, err
}

// presenceAt is the byte of Present, which no name has.
const presenceAt = 1 << 62

// Present locks a byte of file shared that no name has. So each keeper can find out whether it is alone.
func Present(file string) (Lock, error) {
	f, err := openFile(file)
	if err != nil {
		return Lock{}, err
	}
	lock := Lock{f, presenceAt}
	if ok, err := lock.try(unix.F_RDLCK); !ok {
		return Lock{}, errors.Join(err, fmt.Errorf("lock %s: another caller holds it exclusively", f.Name()), lock.Close())
	}
	return lock, nil
}

// IsAlone reports whether nobody else has the lock, without a change of it.
func (l Lock) IsAlone() (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: l.at, Len: 1}
	err := eintr.Ignore(func() error { return unix.FcntlFlock(l.Fd(), unix.F_OFD_GETLK, &lock) })
	if err != nil {
		return false, &os.PathError{Op: "look at lock", Path: l.Name(), Err: err}
	}
	return lock.Type == unix.F_UNLCK, nil
}

// All locks all of these names, by bytes of file. It waits for those that somebody else has. It takes the locks in an order
// of its own, so that two callers with the same names do not wait for each other.
func All(ctx context.Context, file string, wants ...Want) (unlock func() error, err error) {
	how := make(map[int64]int16, len(wants))
	for _, w := range wants {
		switch at := byteOf(w.Name); {
		case w.Exclusive:
			how[at] = unix.F_WRLCK
		case how[at] != unix.F_WRLCK:
			how[at] = unix.F_RDLCK
		}
	}
	f, err := openFile(file)
	if err != nil {
		return nil, err
	}
	for _, at := range slices.Sorted(maps.Keys(how)) {
		lock := Lock{f, at}
		if err := lock.wait(ctx, func() (bool, error) { return lock.try(how[at]) }); err != nil {
			return nil, err
		}
	}
	return func() error {
		for at := range how {
			_, _ = Lock{f, at}.try(unix.F_UNLCK) // closing the file is not enough, as for Unlock
		}
		return f.Close()
	}, nil
}

func (l Lock) wait(ctx context.Context, try func() (ok bool, err error)) error {
	ok := false
	err := poll.WhileBusy(ctx, poll.Pauses{First: time.Millisecond, Longest: 50 * time.Millisecond}, func() (busy bool, err error) {
		ok, err = try()
		return !ok && err == nil, err
	})
	if ok {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("another caller still has it locked: %w", err)
	}
	return errors.Join(err, l.Close())
}

// Leave gives up a lock. If nobody else has it then, Leave takes it exclusively, and alone is true. The caller calls Unlock
// afterwards in any case.
func (l Lock) Leave() (alone bool, err error) {
	// Unlock first: otherwise two callers at once would each find the lock of the other, and neither would be alone.
	if _, err = l.try(unix.F_UNLCK); err != nil {
		return false, err
	}
	return l.try(unix.F_WRLCK)
}

// Unlock gives up a lock. If nobody else has it then, Unlock takes it exclusively, and so keeps others out while it calls
// alone. Closing the file is not enough: a child that is being forked may have it open. alone may be nil.
func (l Lock) Unlock(alone func() error) (err error) {
	defer func() { err = errors.Join(err, l.Close()) }()
	if alone == nil {
		_, _ = l.try(unix.F_UNLCK) // if that fails, closing the file unlocks
		return nil
	}
	if ok, err := l.Leave(); !ok {
		return err
	}
	err = alone()
	_, _ = l.try(unix.F_UNLCK)
	return err
}
