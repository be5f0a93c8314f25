package btrfsctl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// fileIDWithoutParent is FILEID_BTRFS_WITHOUT_PARENT of include/linux/exportfs.h.
const fileIDWithoutParent = 0x4d

// OpenRoot opens the root directory of the subvolume id, wherever on the filesystem of fd it is linked,
// without resolving a path. The caller closes the descriptor. ESTALE: there is none. It needs
// CAP_DAC_READ_SEARCH.
func OpenRoot(fd int, id uint64) (int, error) {
	// struct btrfs_fid without its parent: le64 inode, le64 subvolume, le32 generation, of which 0 fits
	// every inode (fs/btrfs/export.c).
	var handle [20]byte
	binary.NativeEndian.PutUint64(handle[:], FirstFreeObjectID)
	binary.NativeEndian.PutUint64(handle[8:], id)
	return unix.OpenByHandleAt(fd, unix.NewFileHandle(fileIDWithoutParent, handle[:]),
		unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
}
