package btrfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// addLinks hints at every name of the changed inodes that have several names. The stream mentions each inode under one
// name only.
func addLinks(top *os.File, r *replayed) error {
	for _, inode := range r.changed {
		var stat unix.Stat_t
		err := unix.Fstatat(int(top.Fd()), inode.path, &stat, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENAMETOOLONG):
			return &treediff.NoHintsError{Reason: "path-too-long", Err: err}
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return &treediff.NoHintsError{Reason: "inconsistent", Err: fmt.Errorf("the stream names %q, which does not exist: %w", inode.path, err)}
		case err != nil:
			return fmt.Errorf("changed inode: %w", &os.PathError{Op: "stat", Path: inode.path, Err: err})
		}
		if stat.Nlink < 2 || stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		paths, err := btrfsctl.InoPaths(int(top.Fd()), stat.Ino)
		if errors.Is(err, unix.EOVERFLOW) {
			return &treediff.NoHintsError{Reason: "many-links", Err: fmt.Errorf("inode %d has %d links: %w", stat.Ino, stat.Nlink, err)}
		}
		if err != nil {
			return fmt.Errorf("links of inode %d: %w", stat.Ino, err)
		}
		for _, path := range paths {
			r.hints.Add(path, inode.flags)
		}
	}
	return nil
}
