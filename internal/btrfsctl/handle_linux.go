package btrfsctl

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// fileIDWithoutParent is FILEID_BTRFS_WITHOUT_PARENT of include/linux/exportfs.h.
const fileIDWithoutParent = 0x4d

// OpenRoot opens the root directory of the subvolume id, wherever on the filesystem of fd it is linked, without
// resolving a path. The caller closes the descriptor. Returns ESTALE if there is no such subvolume. It needs
// CAP_DAC_READ_SEARCH and, on older kernels, CAP_SYS_ADMIN.
func OpenRoot(fd int, id uint64) (int, error) { return OpenDir(fd, id, FirstFreeObjectID) }

// OpenDir is OpenRoot for the directory with that inode number in the subvolume.
func OpenDir(fd int, subvolume, inode uint64) (int, error) {
	dir, err := openHandle(fd, subvolume, inode, 0)
	if !errors.Is(err, unix.ESTALE) {
		return dir, err
	}
	// Older kernels, 6.1 among them, want the generation of the inode.
	generation, err := inodeGeneration(fd, subvolume, inode)
	if errors.Is(err, unix.ENOENT) {
		return -1, unix.ESTALE
	}
	if err != nil {
		return -1, err
	}
	return openHandle(fd, subvolume, inode, generation)
}

// openHandle opens a directory by the parts of its file handle.
func openHandle(fd int, subvolume, inode uint64, generation uint32) (int, error) {
	// struct btrfs_fid without its parent: le64 inode, le64 subvolume, le32 generation, of which newer kernels
	// take 0 for any (fs/btrfs/export.c).
	var handle [20]byte
	binary.NativeEndian.PutUint64(handle[:], inode)
	binary.NativeEndian.PutUint64(handle[8:], subvolume)
	binary.NativeEndian.PutUint32(handle[16:], generation)
	return unix.OpenByHandleAt(fd, unix.NewFileHandle(fileIDWithoutParent, handle[:]),
		unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
}

// Generation returns the lower half of the number of the transaction in which the open file fd was made. A snapshot has it from its
// source.
func Generation(fd int) (uint32, error) {
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return 0, err
	}
	parts := handle.Bytes() // see openHandle
	if handle.Type() != fileIDWithoutParent || len(parts) < 20 {
		return 0, unix.EINVAL
	}
	return binary.NativeEndian.Uint32(parts[16:]), nil
}

// Protection is the flags of a directory that keep entries from being unlinked in it and itself from being unlinked:
// immutable and append-only, see FS_IOC_SETFLAGS in ioctl_iflags(2).
type Protection int

const protected = 0x10 | 0x20 // FS_IMMUTABLE_FL, FS_APPEND_FL of linux/fs.h

// ProtectionOf reads the protection of the directory open as fd.
func ProtectionOf(fd int) (Protection, error) {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	return Protection(flags & protected), err
}

// Protect gives the directory open as fd that protection, and takes away another.
func Protect(fd int, p Protection) error {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || Protection(flags&protected) == p {
		return err
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^protected|int(p))
}

// AllowUnlink takes its protection off the directory open as fd.
func AllowUnlink(fd int) error { return Protect(fd, 0) }
