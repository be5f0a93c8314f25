package overlaysource

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// TreeAt returns the tree that the directory at a path is in.
func TreeAt(path string) (Tree, error) {
	var st unix.Statfs_t
	if err := eintr.Ignore(func() error { return unix.Statfs(path, &st) }); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return treeOf(&st), nil
}

// TreeOf returns the tree that an open file is in.
func TreeOf(file *os.File) (Tree, error) {
	var st unix.Statfs_t
	if err := eintr.Ignore(func() error { return unix.Fstatfs(int(file.Fd()), &st) }); err != nil {
		return 0, &fs.PathError{Op: "fstatfs", Path: file.Name(), Err: err}
	}
	return treeOf(&st), nil
}

// treeOf is the filesystem's id. btrfs makes it of its UUID and the number of the subvolume, which it never uses again. ZFS takes
// the GUID of the dataset.
func treeOf(st *unix.Statfs_t) Tree {
	return Tree(uint64(uint32(st.Fsid.Val[0]))<<32 | uint64(uint32(st.Fsid.Val[1])))
}
