// Package flock locks whole files, as flock(2) does.
//
// Such a lock belongs to the open file. A child that this process forks has the file open as well, until it executes
// its program. So closing the file may leave it locked for that long. Release does not.
package flock

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/poll"
)

// Open opens a lock file, or a directory, with the flags of os.OpenFile. The lock is not held yet.
func Open(path string, flag int) (*Lock, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return &Lock{f}, nil
}

// Shared locks a file together with others who lock it shared. It waits while someone has it locked exclusively, until
// ctx ends.
func Shared(ctx context.Context, f *os.File) error { return wait(ctx, f, unix.LOCK_SH) }

// Exclusive locks a file for its caller alone. It waits while someone else has it locked, until ctx ends.
func Exclusive(ctx context.Context, f *os.File) error { return wait(ctx, f, unix.LOCK_EX) }

// TryShared is Shared without waiting: ok is false if someone has the file locked exclusively.
func TryShared(f *os.File) (ok bool, err error) { return try(f, unix.LOCK_SH) }

// TryExclusive is Exclusive without waiting: ok is false if someone else has the file locked. An earlier lock of the
// caller may be lost then.
func TryExclusive(f *os.File) (ok bool, err error) { return try(f, unix.LOCK_EX) }

// Unlock unlocks a file, which stays open.
func Unlock(f *os.File) error { return wrap(f, flock(f, unix.LOCK_UN)) }

// Release unlocks a file and closes it. If it cannot be unlocked, which is no error, closing it does that.
func Release(f *os.File) error {
	_ = Unlock(f)
	return f.Close()
}

// wait tries again and again: nothing but a signal ends a flock(2) that waits in the kernel.
func wait(ctx context.Context, f *os.File, how int) error {
	return poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		ok, err := try(f, how)
		return !ok && err == nil, err
	})
}

// pauses bound how late a lock is taken that has become free.
var pauses = poll.Pauses{First: time.Millisecond, Longest: 20 * time.Millisecond}

func try(f *os.File, how int) (ok bool, err error) {
	err = flock(f, how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, wrap(f, err)
}

func flock(f *os.File, how int) error {
	return eintr.Ignore(func() error { return unix.Flock(int(f.Fd()), how) })
}

func wrap(f *os.File, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
}
