package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A lock is a file in the directory locks. Whoever uses a layer's dataset, or a view, holds its lock shared;
// whoever changes it as a whole holds it exclusively. The kernel releases what a process held that is gone.
// Who finds that nobody else holds a lock removes its file.

// tryLock locks exclusively. ok is false if somebody holds the lock.
func (l layout) tryLock(name string) (_ *os.File, ok bool, err error) {
	for {
		f, err := l.openLock(name)
		if err != nil {
			return nil, false, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, false, f.Close()
		}
		current, err := l.isCurrent(f, err)
		if current {
			return f, true, nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, false, err
		}
	}
}

// lockShared locks shared. It waits for others to end what they change, which takes milliseconds.
func (l layout) lockShared(ctx context.Context, name string) (*os.File, error) {
	for pause := time.Millisecond; ; {
		f, err := l.openLock(name)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		busy := errors.Is(err, unix.EWOULDBLOCK)
		if busy {
			err = nil
		}
		current := false
		if !busy {
			current, err = l.isCurrent(f, err)
		}
		if current {
			return f, nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		if !busy {
			continue
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, 50*time.Millisecond)
		case <-ctx.Done():
			return nil, fmt.Errorf("another process changes it: %w", context.Cause(ctx))
		}
	}
}

// unlock gives up a lock. If nobody else holds it, alone is called, while nobody can, and the file goes unless alone
// fails.
func (l layout) unlock(f *os.File, alone func() error) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	// Given up first: of two who do this at once, one must find itself alone.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	current, err := l.isCurrent(f, err)
	if !current {
		return err
	}
	if alone != nil {
		if err := alone(); err != nil {
			return err
		}
	}
	return os.Remove(f.Name())
}

func (l layout) openLock(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(l.locks, name), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
}

// isCurrent reports whether f, just locked unless err says otherwise, is still the file of its name: who had
// it before may have removed it.
func (l layout) isCurrent(f *os.File, err error) (bool, error) {
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
