package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// errStub says that a directory is the empty one that a snapshot has in the place of a subvolume. There is nothing in
// it, and nothing can be put there.
var errStub = fmt.Errorf("the empty stand-in that a snapshot has for a subvolume: %w", errNotSubvolume)

// stubError says of which subvolume the directory dir is the stand-in.
func stubError(dir *os.File) error {
	original, err := stubOriginal(dir)
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

// stubOriginal describes the subvolume that a stand-in is for: its entry in the directory above has that one's id for
// its inode number.
func stubOriginal(dir *os.File) (string, error) {
	above, err := os.Open(path.Dir(dir.Name()))
	if err != nil {
		return "", err
	}
	defer above.Close()
	id, err := entryInode(above, path.Base(dir.Name()))
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
	for id != btrfsctl.FSTreeObjectID {
		link, err := btrfsctl.LinkByID(fd, id)
		if err != nil {
			return "", err
		}
		dir, err := btrfsctl.DirPath(fd, link.ParentID, link.DirID)
		if err != nil {
			return "", err
		}
		at, id = path.Join(dir, link.Name, at), link.ParentID
	}
	return at, nil
}

// entryInode is the inode number of an entry of a directory as the directory has it. ENOENT: there is no such entry.
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
