package btrfsctl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// StandInInode is the inode number of each empty directory that a snapshot has in the place of a nested subvolume. Nothing
// can be made in such a directory (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
const StandInInode = 2

// StandsFor describes the subvolume that a directory stands for which a snapshot has in place of it: the entry in the
// directory above has that subvolume's id for its inode number. GET_SUBVOL_INFO answers ENOTTY for such a directory. It
// needs CAP_SYS_ADMIN.
func StandsFor(dir string) (string, error) {
	above, err := os.Open(path.Dir(dir))
	if err != nil {
		return "", err
	}
	defer above.Close()
	id, err := entryInode(above, path.Base(dir))
	if err != nil {
		return "", err
	}
	at, err := pathFromTop(int(above.Fd()), id)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Sprintf("%d, which is gone", id), nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d, %q from the top of the filesystem", id, at), nil
}

// pathFromTop is the path of a subvolume from the top of the filesystem of fd.
func pathFromTop(fd int, id uint64) (string, error) {
	at := ""
	for id != FSTreeObjectID {
		link, err := LinkByID(fd, id)
		if err != nil {
			return "", err
		}
		dir, err := DirPath(fd, link.ParentID, link.DirID)
		if err != nil {
			return "", err
		}
		at, id = path.Join(dir, link.Name, at), link.ParentID
	}
	return at, nil
}

// entryInode is the inode number of an entry of a directory as the directory has it. Returns ENOENT if there is no
// such entry.
func entryInode(dir *os.File, name string) (uint64, error) {
	// struct linux_dirent64 of getdents(2): d_ino, d_off, le16 d_reclen, d_type, d_name.
	const reclenAt, nameAt = 16, 19
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(int(dir.Fd()), buf)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, unix.ENOENT
		}
		for entries := buf[:n]; len(entries) > nameAt; {
			size := binary.NativeEndian.Uint16(entries[reclenAt:])
			if unix.ByteSliceToString(entries[nameAt:size]) == name {
				return binary.NativeEndian.Uint64(entries), nil
			}
			entries = entries[size:]
		}
	}
}
