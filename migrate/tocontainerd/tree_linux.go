package tocontainerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
	"github.com/cowshed/cowshed/migrate/internal/subvolume"
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

// isCopy reports whether the volume with these mounts, whose root directory is dir, is a copy of the volume from. The
// filesystem decides: on ZFS it is a clone, and on btrfs a snapshot. A tree of reflinks is neither.
func isCopy(mounts []mount.Mount, dir *os.File, from *migrate.Content) (bool, error) {
	dataset, err := datasetOf(mounts)
	if err != nil {
		return false, err
	}
	if dataset != "" {
		return isCloneOf(dataset, from.Volume)
	}
	return isSnapshotOf(dir, from.Dir)
}

// datasetOf is the dataset whose root directory the mounts show, "" if it is not on ZFS. They mount it by its name, or bind a
// directory where it is mounted.
func datasetOf(mounts []mount.Mount) (dataset string, err error) {
	switch {
	case len(mounts) != 1:
		return "", nil
	case mounts[0].Type == "zfs":
		return mounts[0].Source, nil
	case !isBind(mounts[0]):
		return "", nil
	}
	dir, err := os.OpenFile(mounts[0].Source, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", fmt.Errorf("adopted volume: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	on, within, err := rootuse.MountOf(dir)
	if err != nil || on.FSType != "zfs" || filepath.Join(on.Root, within) != "/" {
		return "", err
	}
	return on.Source, nil
}

func isBind(m mount.Mount) bool {
	return m.Type == "bind" || slices.ContainsFunc(m.Options, func(o string) bool { return o == "bind" || o == "rbind" })
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

// isSnapshotOf reports whether a subvolume is a snapshot of another one. Both are root directories, or it is not.
func isSnapshotOf(dir, of *os.File) (bool, error) {
	if !subvolume.Is(dir) || !subvolume.Is(of) {
		return false, nil
	}
	origin, err := btrfsctl.Info(int(of.Fd()))
	if err != nil {
		return false, fmt.Errorf("volume of the layer: %w", err)
	}
	made, err := btrfsctl.Info(int(dir.Fd()))
	if err != nil {
		return false, fmt.Errorf("adopted volume: %w", err)
	}
	// The top of an old filesystem has no UUID, and neither has the parent of a subvolume that is no snapshot.
	return made.ParentUUID == origin.UUID && origin.UUID != (btrfsctl.UUID{}), nil
}
