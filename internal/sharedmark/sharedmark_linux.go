package sharedmark

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

// maxMark bounds a mark: a version and the name of a volume.
const maxMark = 1 << 10

// Open opens Cowshed's directory in the tree with that root, and reads its mark. The caller closes the descriptor, which
// is -1 if the tree has no such directory.
func Open(root int) (dir int, mark string, err error) {
	dir, err = treeat.Open(root, Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		// Anything but a directory is a user's.
		return -1, "", ignore(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP)
	}
	var buf [maxMark]byte
	n, err := eintr.Retry(func() (int, error) { return unix.Fgetxattr(dir, Xattr, buf[:]) })
	if err != nil {
		_ = unix.Close(dir)
		return -1, "", ignore(err, unix.ENODATA, unix.ENOTSUP)
	}
	return dir, string(buf[:n]), nil
}

// IsIn reports whether the tree with that root has Cowshed's directory.
func IsIn(root int) (bool, error) {
	dir, _, err := Open(root)
	if dir >= 0 {
		_ = unix.Close(dir)
	}
	return dir >= 0, err
}

func ignore(err error, harmless ...error) error {
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	return err
}
