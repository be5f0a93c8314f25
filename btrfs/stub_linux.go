package btrfs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// errStub says that a directory is a stand-in: the empty directory that a snapshot has in place of a subvolume. Nothing
// is in it, and nothing can be put there.
var errStub = fmt.Errorf("the empty stand-in that a snapshot has for a subvolume: %w", errNotSubvolume)

// stubError returns an errStub that names the subvolume for which the directory dir stands.
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
