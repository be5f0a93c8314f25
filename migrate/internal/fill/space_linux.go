package fill

import (
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// freeSpace is the space for data on the filesystem of a path, in bytes.
func freeSpace(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := eintr.Ignore(func() error { return unix.Statfs(path, &st) }); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), nil
}
