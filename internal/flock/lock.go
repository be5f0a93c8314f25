package flock

import (
	"context"
	"errors"
	"io/fs"
	"os"
)

// Lock is an advisory lock on a file, which the kernel releases with the process. Without a file it is held by everyone
// who asks.
type Lock struct{ File *os.File }

// Shared is Shared of the file.
func (l *Lock) Shared(ctx context.Context) error {
	if l.File == nil {
		return nil
	}
	return Shared(ctx, l.File)
}

// Exclusive is Exclusive of the file.
func (l *Lock) Exclusive(ctx context.Context) error {
	if l.File == nil {
		return nil
	}
	return Exclusive(ctx, l.File)
}

// TryExclusive is TryExclusive of the file.
func (l *Lock) TryExclusive() (ok bool, err error) {
	if l.File == nil {
		return true, nil
	}
	return TryExclusive(l.File)
}

// Close releases the lock and closes the file.
func (l *Lock) Close() error {
	if l.File == nil {
		return nil
	}
	return Release(l.File)
}

// Dir locks a directory for its caller alone. It waits while someone else has it locked, until ctx ends.
func Dir(ctx context.Context, dir string) (unlock func(), err error) {
	l, err := Open(dir, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	if err := l.Exclusive(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return func() { _ = l.Close() }, nil // nothing is written to a directory, and the lock ends with the process at the latest
}

// IsAt reports whether a path leads to an open file. Another process may have deleted or replaced a lock file before the
// file that the caller opened was locked.
func IsAt(f *os.File, path string) (bool, error) {
	opened, err := f.Stat()
	if err != nil {
		return false, err
	}
	present, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(opened, present), err
}
