package overlaysource

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// HomeOf identifies the home whose directory is open. It stays the same when the home is renamed. A copy or snapshot of
// a home is another. The home is not known if its filesystem has no id.
func HomeOf(dir *os.File) (Home, error) {
	var fs unix.Statfs_t
	if err := eintr.Ignore(func() error { return unix.Fstatfs(int(dir.Fd()), &fs) }); err != nil {
		return Home{}, &os.PathError{Op: "fstatfs", Path: dir.Name(), Err: err}
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		return Home{}, &os.PathError{Op: "fstat", Path: dir.Name(), Err: err}
	}
	id := uint64(uint32(fs.Fsid.Val[0]))<<32 | uint64(uint32(fs.Fsid.Val[1]))
	return Home{filesystem: id, inode: stat.Ino}, nil
}
