package live

import (
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Flags for files that may be of somebody else: no symlink is followed, and nobody waits for the other end of a pipe.
const (
	noFollow = unix.O_NOFOLLOW
	nonBlock = unix.O_NONBLOCK
)

// checkTrusted makes sure that nobody but root and the user of this process could have written a file, or put it there. The
// file may be a directory. If open is not nil, it has to be that file. Returns ErrPermissionDenied if somebody else could.
func checkTrusted(path string, open *os.File) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err := checkSame(path, open); err != nil {
		return err
	}
	for path = filepath.Join(dir, filepath.Base(path)); ; path = filepath.Dir(path) {
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		directory := stat.Mode&unix.S_IFMT == unix.S_IFDIR
		others := stat.Mode & (unix.S_IWGRP | unix.S_IWOTH)
		switch {
		case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
			return fault.New(errdefs.ErrPermissionDenied, "commands are not run from here, since %s is user %d's", path, stat.Uid)
		case others != 0 && !(directory && stat.Mode&unix.S_ISVTX != 0):
			return fault.New(errdefs.ErrPermissionDenied, "commands of this file are not run, since %s has mode %#o and other users may write it", path, stat.Mode&0o7777)
		case path == filepath.Dir(path):
			return nil
		}
	}
}

// checkSame makes sure that a file that is open, if any, is the one of a path.
func checkSame(path string, open *os.File) error {
	if open == nil {
		return nil
	}
	is, err := open.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(is, named) {
		return fault.New(errdefs.ErrUnavailable, "%s has just been replaced", path)
	}
	return nil
}
