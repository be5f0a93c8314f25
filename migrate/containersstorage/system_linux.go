package containersstorage

import (
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// checkOwner refuses the root of another user for the superuser. That user's containers had mapped ids.
func checkOwner(root *rootdir.Dir) error {
	dir, err := root.OpenDir(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		return err
	}
	if os.Geteuid() == 0 && stat.Uid != 0 {
		return fault.New(errdefs.ErrFailedPrecondition, "it belongs to user %d, for whom the ids of files were mapped: "+
			"move its images as that user, by podman save", stat.Uid)
	}
	return nil
}

// subvolumeInode is the inode number of each subvolume's root directory.
const subvolumeInode = 256

func isSubvolume(dir *os.File) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return false, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &stat); err != nil {
		return false, err
	}
	return fs.Type == unix.BTRFS_SUPER_MAGIC && stat.Ino == subvolumeInode, nil
}
