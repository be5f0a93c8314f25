package snapshotter

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// isNew reports whether a tree is that of a volume that has just been made without a parent.
func isNew(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var root unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &root); err != nil {
		return false, err
	}
	if root.Mode != unix.S_IFDIR|0o755 || root.Uid != 0 || root.Gid != 0 {
		return false, nil
	}
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}
