// Package rootdir reads a directory that an attacker may have made: it follows no symbolic link, never leaves the
// directory, opens no pipe and no device, and bounds the size of its reads.
package rootdir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Dir is an open directory. Names are relative to it, with slashes; "." is the directory itself. Methods are safe for
// concurrent use.
//
// Errors are *fs.PathError and match fs.ErrNotExist if the name does not exist. Returns errdefs.ErrInvalidArgument if a
// name leads out of the directory or through a symbolic link, or is of another type than expected.
type Dir struct {
	file *os.File
}

// Open opens the directory at path, which is trusted: symbolic links in it are followed.
func Open(path string) (*Dir, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err == nil {
		resolved, err = filepath.Abs(resolved)
	}
	if err != nil {
		return nil, err
	}
	file, err := openDir(resolved)
	if err != nil {
		return nil, err
	}
	return &Dir{file}, nil
}

// NotFound gives an error of a missing file its kind, errdefs.ErrNotFound.
func NotFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.As(errdefs.ErrNotFound, err)
	}
	return err
}

// Path is the absolute path of the directory, without symbolic links.
func (d *Dir) Path() string { return d.file.Name() }

// Join is the path of a name in the directory, for messages, and for calls that need a path.
func (d *Dir) Join(name ...string) string {
	return filepath.Join(append([]string{d.Path()}, name...)...)
}

// Close closes the directory.
func (d *Dir) Close() error { return d.file.Close() }

// OpenDir opens a directory.
func (d *Dir) OpenDir(name string) (*os.File, error) {
	return d.openDir(name)
}

// Sub opens a directory as a Dir of its own.
func (d *Dir) Sub(name string) (*Dir, error) {
	file, err := d.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &Dir{file}, nil
}

// OpenFile opens a regular file for reading. It opens nothing of another type, not even for a moment: opening a device can
// do something, such as rewind a tape.
func (d *Dir) OpenFile(name string) (_ *os.File, err error) {
	found, err := d.find(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	mode, err := d.mode(found, name)
	if err != nil {
		return nil, err
	}
	if !mode.IsRegular() {
		return nil, d.refuse(name, "not a regular file")
	}
	return reopen(found)
}

// mode is the type of a file that was found. Returns an error for a symbolic link.
func (d *Dir) mode(found *os.File, name string) (fs.FileMode, error) {
	info, err := found.Stat()
	if err != nil {
		return 0, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return 0, d.refuse(name, "a symbolic link")
	}
	return info.Mode(), nil
}

// ReadFile reads a regular file. Returns errdefs.ErrResourceExhausted if it has more than max bytes.
func (d *Dir) ReadFile(name string, max int64) ([]byte, error) {
	file, err := d.OpenFile(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, max+1))
	if err == nil && int64(len(data)) > max {
		err = &fs.PathError{Op: "read", Path: d.Join(name), Err: fault.New(errdefs.ErrResourceExhausted, "more than %d bytes", max)}
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	return data, nil
}

// listAtOnce is how many names are read before they are counted.
const listAtOnce = 1024

// List lists the names in a directory, sorted. Returns errdefs.ErrResourceExhausted if there are more than max.
func (d *Dir) List(name string, max int) ([]string, error) {
	dir, err := d.OpenDir(name)
	if err != nil {
		return nil, err
	}
	var names []string
	for err == nil && len(names) <= max {
		var more []string
		more, err = dir.Readdirnames(listAtOnce)
		names = append(names, more...)
	}
	switch {
	case errors.Is(err, io.EOF):
		err = nil
	case err == nil:
		err = &fs.PathError{Op: "list", Path: d.Join(name), Err: fault.New(errdefs.ErrResourceExhausted, "more than %d names", max)}
	}
	if err := errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// Exists reports whether there is a regular file or a directory of that name.
func (d *Dir) Exists(name string) (bool, error) {
	found, err := d.find(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	mode, err := d.mode(found, name)
	return err == nil && (mode.IsDir() || mode.IsRegular()), errors.Join(err, found.Close())
}

// Owner is the owner of a directory.
func (d *Dir) Owner(name string) (uid, gid uint32, err error) {
	dir, err := d.OpenDir(name)
	if err != nil {
		return 0, 0, err
	}
	uid, gid, err = ownerOf(dir)
	return uid, gid, errors.Join(err, dir.Close())
}

// parts splits a name into the names of its directories and its own.
func (d *Dir) parts(name string) ([]string, error) {
	if !filepath.IsLocal(name) || strings.IndexByte(name, 0) >= 0 {
		return nil, d.refuse(name, "the name leads out of the directory")
	}
	return strings.Split(filepath.Clean(name), string(filepath.Separator)), nil
}

func (d *Dir) refuse(name, why string) error {
	return &fs.PathError{Op: "open", Path: d.Join(name), Err: fault.New(errdefs.ErrInvalidArgument, "%s", why)}
}
