package tocontainerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/migrate"
)

// openInTree opens a regular file of a tree. Symbolic links are those of the tree: none of them leads out of it.
func openInTree(dir *os.File, name string) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(int(dir.Fd()), name, how)
	// A rename or mount, anywhere on the host, while the kernel followed a ".." gives EAGAIN (openat2(2)).
	for errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat2(int(dir.Fd()), name, how)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("not a regular file: %w", fs.ErrInvalid)}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// isCopy reports whether the volume with these mounts, whose root directory is dir, is a copy of the volume from.
func isCopy(mounts []mount.Mount, dir *os.File, from *migrate.Content) (bool, error) {
	if len(mounts) == 1 && mounts[0].Type == "zfs" {
		return isCloneOf(mounts[0].Source, from.Volume)
	}
	return isSnapshotOf(dir, from.Dir)
}

// isCloneOf reports whether a dataset was cloned from another. That cannot be destroyed while the source has it open, and no
// symbolic link leads to it.
func isCloneOf(dataset, of string) (is bool, err error) {
	zfs, err := zfsctl.Open()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, zfs.Close()) }()
	made, err := zfs.Stats(dataset)
	if err != nil {
		return false, fmt.Errorf("adopted volume: %w", err)
	}
	return strings.HasPrefix(made.Origin, of+"@"), nil
}

// isSnapshotOf reports whether a subvolume is a snapshot of another one. Both are root directories.
func isSnapshotOf(dir, of *os.File) (bool, error) {
	origin, err := btrfsctl.Info(int(of.Fd()))
	if errors.Is(err, unix.ENOTTY) {
		return false, nil // no path of the source's leads to another filesystem
	}
	if err != nil {
		return false, fmt.Errorf("volume of the layer: %w", err)
	}
	made, err := btrfsctl.Info(int(dir.Fd()))
	if errors.Is(err, unix.ENOTTY) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("adopted volume: %w", err)
	}
	return made.ParentUUID == origin.UUID, nil
}
