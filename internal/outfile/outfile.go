// Package outfile writes to the place that a user has named for output.
package outfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
)

// Stdout reports whether a path means standard output: "-", or a name of the system for it.
func Stdout(path string) bool {
	switch path {
	case "-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1":
		return true
	}
	return false
}

// File is output on its way to a regular file, which is there complete or not at all, or to a pipe.
type File struct {
	*os.File
	regular *atomicfile.File // the same; nil: it is a pipe
	target  string
	replace bool
}

// Check finds out whether Create can write to path, and changes nothing. Symbolic links are followed.
//
// Returns errdefs.ErrAlreadyExists if a regular file exists and is not to be replaced. Returns
// errdefs.ErrInvalidArgument if path is neither a regular file nor a pipe. Returns fs.ErrNotExist if the directory
// does not exist.
func Check(path string, replace bool) error {
	_, _, err := look(path, replace)
	return err
}

// look returns the place of the file, links followed, and the existing file there, nil if none.
func look(path string, replace bool) (target string, info fs.FileInfo, err error) {
	if target, err = follow(path); err != nil {
		return "", nil, err
	}
	info, err = os.Lstat(target)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err = os.Stat(filepath.Dir(target)); err != nil {
			err = fmt.Errorf("create %s: %w", path, err)
		}
		return target, nil, err
	}
	if err != nil {
		return "", nil, err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular() && !replace:
		err = fault.New(errdefs.ErrAlreadyExists, "file %s", path)
	case mode.IsRegular(), mode&fs.ModeNamedPipe != 0:
	case mode.IsDir():
		err = fault.New(errdefs.ErrInvalidArgument, "%s is a directory", path)
	case mode&fs.ModeDevice != 0:
		err = fault.New(errdefs.ErrInvalidArgument, "%s is a device", path)
	default:
		err = fault.New(errdefs.ErrInvalidArgument, "%s is neither a regular file nor a pipe", path)
	}
	return target, info, err
}

// maxLinks is how many symbolic links in a row are followed, as the kernel does.
const maxLinks = 40

// follow returns the target of a path whose last part may be a symbolic link, to nothing too.
func follow(path string) (string, error) {
	for range maxLinks {
		link, err := os.Readlink(path)
		if err != nil {
			return path, nil //nolint:nilerr // it is not a link, or not there
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		path = link
	}
	return "", fault.New(errdefs.ErrInvalidArgument, "%s: too many symbolic links", path)
}

// Create opens path for output, as Check allows. A regular file is written under another name beside it until Commit. A
// pipe is waited for until somebody reads it. The caller calls Commit or Discard.
func Create(ctx context.Context, path string, replace bool) (*File, error) {
	target, info, err := look(path, replace)
	if err != nil {
		return nil, err
	}
	if info != nil && !info.Mode().IsRegular() {
		f, err := openPipe(ctx, target)
		return &File{File: f}, err
	}
	mode := fs.FileMode(0o644)
	if info != nil {
		mode = info.Mode().Perm()
	}
	f, err := atomicfile.Create(filepath.Dir(target), ".cowshed-")
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		return nil, errors.Join(err, f.Discard())
	}
	return &File{f.File, f, target, replace}, nil
}

// openPipe waits for a reader without keeping ctx from ending it.
func openPipe(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := tryOpenPipe(path)
		if f != nil || err != nil {
			return f, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("no process reads the pipe %s: %w", path, context.Cause(ctx))
		}
	}
}

// Commit gives a regular file its name, durably. Returns errdefs.ErrAlreadyExists if somebody has made a file of that
// name meanwhile.
func (f *File) Commit() error {
	switch {
	case f.regular == nil:
		return f.Close()
	case f.replace:
		return f.regular.Commit(f.target)
	}
	err := f.regular.CommitNew(f.target)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(errdefs.ErrAlreadyExists, "file %s", f.target)
	}
	return err
}

// Discard leaves an existing file as it was. Data given to a pipe stays with its reader.
func (f *File) Discard() error {
	if f.regular == nil {
		return f.Close()
	}
	return f.regular.Discard()
}
