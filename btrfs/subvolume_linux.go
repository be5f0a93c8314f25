package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/flock"
)

// errNotSubvolume says that a file is not the root of a subvolume, so Cowshed did not make it.
var errNotSubvolume = fault.New(errdefs.ErrFailedPrecondition, "not a subvolume")

// subvolume is the open root directory of a subvolume, with the kernel's information about the subvolume.
type subvolume struct {
	*os.File
	info btrfsctl.Subvolume
}

// Close unlocks and closes the root.
func (s *subvolume) Close() error { return flock.Release(s.File) }

func (s *subvolume) fd() int { return int(s.Fd()) }

// reopen opens the root again, for use after Close.
func (s *subvolume) reopen() (*os.File, error) {
	fd, err := unix.Openat(s.fd(), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: s.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), s.Name()), nil
}

// openSubvolume opens the root of the subvolume name in dir, one of the layout's directories.
func (b *Backend) openSubvolume(dir *os.File, name string) (*subvolume, error) {
	file, err := openRoot(dir, name)
	if err != nil {
		return nil, err
	}
	return b.examine(file)
}

// openRoot opens the directory name in dir, which may be the root of a subvolume.
func openRoot(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	path := dir.Name() + "/" + name
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s: %w", path, errNotSubvolume)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// examine asks the kernel about the subvolume whose root is open as file. If that fails, it closes file.
func (b *Backend) examine(file *os.File) (*subvolume, error) {
	info, err := btrfsctl.Info(int(file.Fd()))
	switch {
	case errors.Is(err, unix.ENOTTY):
		err = stubError(file)
	case err != nil:
		err = fmt.Errorf("subvolume %s: %w", file.Name(), err)
	case info.ID == b.dirs.subvolumesID: // an ordinary directory in the subvolume that holds the layout
		err = fmt.Errorf("%s: %w", file.Name(), errNotSubvolume)
	default:
		return &subvolume{File: file, info: info}, nil
	}
	return nil, errors.Join(err, file.Close())
}
