// Package atomicfile writes files that take their place whole, so that they survive a power cut, or not at all.
package atomicfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// File is a file that has a temporary name until Commit or CommitNew. The caller calls one of these or Discard. A crash
// leaves the temporary name. Returns ENOSPC if a quota leaves no
// space: see [fault.OfOwnFile].
type File struct{ *os.File }

// Create makes a file in the directory dir. Pattern is that of its temporary name, as for os.CreateTemp. Its mode is 0600.
func Create(dir, pattern string) (*File, error) {
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return nil, fault.OfOwnFile(err)
	}
	return &File{f}, nil
}

// Write implements io.Writer.
func (f *File) Write(content []byte) (int, error) {
	n, err := f.File.Write(content)
	return n, fault.OfOwnFile(err)
}

// WriteString implements io.StringWriter.
func (f *File) WriteString(content string) (int, error) {
	n, err := f.File.WriteString(content)
	return n, fault.OfOwnFile(err)
}

// ReadFrom implements io.ReaderFrom.
func (f *File) ReadFrom(content io.Reader) (int64, error) {
	n, err := f.File.ReadFrom(content)
	return n, fault.OfOwnFile(err)
}

// Commit gives the file the name path, on the same filesystem, and replaces an existing file. After an error the file
// is gone, unless the error came when path was made durable.
func (f *File) Commit(path string) error { return f.commit(path, os.Rename) }

// CommitNew is Commit that replaces nothing. Returns fs.ErrExist if path is there.
func (f *File) CommitNew(path string) error { return f.commit(path, renameNew) }

func (f *File) commit(path string, rename func(from, to string) error) error {
	err := errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fault.OfOwnFile(err), f.remove())
	}
	return syncdir.Sync(filepath.Dir(path))
}

// Discard deletes the file.
func (f *File) Discard() error { return errors.Join(f.Close(), f.remove()) }

func (f *File) remove() error {
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Write makes path a file with that content and mode, and replaces an existing file. The temporary name is that of path
// with a dot before and something after it.
func Write(path string, content []byte, mode fs.FileMode) error {
	return WriteAs(path, "."+filepath.Base(path)+"-*", content, mode)
}

// WriteAs is Write with a pattern for the temporary name, as for Create.
func WriteAs(path, pattern string, content []byte, mode fs.FileMode) error {
	f, err := Create(filepath.Dir(path), pattern)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode)); err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit(path)
}
