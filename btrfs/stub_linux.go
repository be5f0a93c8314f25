package btrfs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// errStub says that a directory is the empty one that a snapshot has in the place of a subvolume. There is nothing in
// it, and nothing can be put there.
var errStub = fmt.Errorf("the empty stand-in that a snapshot has for a subvolume: %w", errNotSubvolume)

// stubError says of which subvolume the directory dir is the stand-in.
func stubError(dir *os.File) error {
	original, err := btrfsctl.StandsFor(dir.Name())
	if err != nil {
		return fmt.Errorf("%s: it stands for a subvolume that cannot be found (%w): %w", dir.Name(), err, errStub)
	}
	return fmt.Errorf("%s: it stands for subvolume %s, use that one, or remove the empty directory with rmdir: %w", dir.Name(), original, errStub)
}

// isStub reports whether the directory dir is a stand-in.
func isStub(dir *os.File) (bool, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		return false, err
	}
	return stat.Ino == emptySubvolDirInode, nil
}
