package btrfsctl

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Trees and key types of btrfs_tree.h.
const (
	rootTreeObjectID = 1
	uuidTreeObjectID = 9

	inodeItemKey   = 1
	rootBackrefKey = 144
	uuidSubvolKey  = 251
)

type searchKey struct {
	treeID      uint64
	minObjectID uint64
	maxObjectID uint64
	minOffset   uint64
	maxOffset   uint64
	minTransid  uint64
	maxTransid  uint64
	minType     uint32
	maxType     uint32
	nrItems     uint32
	_           uint32
	_           [4]uint64
}

type searchArgs struct {
	key searchKey
	buf [4096 - 104]byte
}

// searchHeaderSize is sizeof(struct btrfs_ioctl_search_header): transid, objectid, offset, type, len.
const searchHeaderSize = 32

// searchOne returns the first item of the tree with that objectid and type, and offset within bounds. Returns ENOENT
// if there is no such item. It needs CAP_SYS_ADMIN.
func searchOne(fd int, tree, objectID uint64, keyType uint32, minOffset, maxOffset uint64) (offset uint64, data []byte, err error) {
	args := &searchArgs{key: searchKey{
		treeID:      tree,
		minObjectID: objectID, maxObjectID: objectID,
		minOffset: minOffset, maxOffset: maxOffset,
		maxTransid: ^uint64(0),
		minType:    keyType, maxType: keyType,
		nrItems: 1,
	}}
	if err := ioctl(fd, iocTreeSearch, unsafe.Pointer(args)); err != nil {
		return 0, nil, err
	}
	if args.key.nrItems == 0 {
		return 0, nil, unix.ENOENT
	}
	offset = binary.NativeEndian.Uint64(args.buf[16:])
	size := binary.NativeEndian.Uint32(args.buf[28:])
	if int(size) > len(args.buf)-searchHeaderSize {
		return 0, nil, fmt.Errorf("tree search item of %d bytes: %w", size, unix.EOVERFLOW)
	}
	return offset, args.buf[searchHeaderSize : searchHeaderSize+size], nil
}

// IDByUUID finds the subvolume with that UUID on the filesystem of fd. Returns ENOENT if there is no such subvolume.
// It needs CAP_SYS_ADMIN.
func IDByUUID(fd int, uuid UUID) (uint64, error) {
	// The key of a UUID item is the UUID itself: half as objectid, half as offset (fs/btrfs/uuid-tree.c).
	objectID := binary.LittleEndian.Uint64(uuid[:8])
	offset := binary.LittleEndian.Uint64(uuid[8:])
	_, data, err := searchOne(fd, uuidTreeObjectID, objectID, uuidSubvolKey, offset, offset)
	if err != nil {
		return 0, err
	}
	if len(data) < 8 {
		return 0, unix.EIO
	}
	return binary.LittleEndian.Uint64(data), nil
}

// inodeGeneration is the part of an inode's file handles that distinguishes it from an earlier inode of its number.
// Returns ENOENT if there is no such inode. It needs CAP_SYS_ADMIN.
func inodeGeneration(fd int, subvolume, inode uint64) (uint32, error) {
	_, data, err := searchOne(fd, subvolume, inode, inodeItemKey, 0, 0)
	if err != nil {
		return 0, err
	}
	if len(data) < 8 { // struct btrfs_inode_item begins with le64 generation
		return 0, unix.EIO
	}
	return uint32(binary.LittleEndian.Uint64(data)), nil
}

// Link says where a subvolume is linked.
type Link struct {
	ParentID uint64 // the subvolume that holds the directory
	DirID    uint64 // inode number of the directory
	Name     string
}

// LinkByID finds where the subvolume id on the filesystem of fd is linked. Returns ENOENT if it does not exist, or if
// it is being removed. It needs CAP_SYS_ADMIN.
func LinkByID(fd int, id uint64) (Link, error) {
	parent, data, err := searchOne(fd, rootTreeObjectID, id, rootBackrefKey, 0, ^uint64(0))
	if err != nil {
		return Link{}, err
	}
	// struct btrfs_root_ref: le64 dirid, le64 sequence, le16 name_len, then the name.
	if len(data) < 18 {
		return Link{}, unix.EIO
	}
	n := int(binary.LittleEndian.Uint16(data[16:]))
	if len(data) < 18+n {
		return Link{}, unix.EIO
	}
	return Link{ParentID: parent, DirID: binary.LittleEndian.Uint64(data), Name: string(data[18 : 18+n])}, nil
}

const maxInoLookupPath = 4080

type inoLookupArgs struct {
	treeid   uint64
	objectid uint64
	name     [maxInoLookupPath]byte
}

// DirPath returns the path of the directory inode within the subvolume tree, relative to the subvolume's root. The
// path ends in a slash, unless it is the root, which is "". It needs CAP_SYS_ADMIN.
func DirPath(fd int, tree, inode uint64) (string, error) {
	args := &inoLookupArgs{treeid: tree, objectid: inode}
	if err := ioctl(fd, iocInoLookup, unsafe.Pointer(args)); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(args.name[:]), nil
}

type inoPathArgs struct {
	inum   uint64
	size   uint64
	_      [4]uint64
	fspath unsafe.Pointer
}

// inoPathsSize is the most that the kernel fills in, whatever it is offered (btrfs_ioctl_ino_to_path).
const inoPathsSize = 4096

// InoPaths lists every path of an inode within the subvolume that holds fd, relative to that subvolume's root.
// Returns EOVERFLOW if they do not fit into the 4 KiB that the kernel can list. It needs CAP_DAC_READ_SEARCH.
func InoPaths(fd int, inode uint64) ([]string, error) {
	// struct btrfs_data_container: le32 bytes_left, bytes_missing, elem_cnt, elem_missed, then elem_cnt
	// offsets of NUL-terminated strings, relative to the start of the offsets.
	const header = 16
	buf := make([]uint64, inoPathsSize/8)
	args := &inoPathArgs{inum: inode, size: inoPathsSize, fspath: unsafe.Pointer(&buf[0])}
	if err := ioctl(fd, iocInoPaths, unsafe.Pointer(args)); err != nil {
		return nil, err
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), inoPathsSize)
	count, missed := binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[12:])
	if missed > 0 {
		return nil, unix.EOVERFLOW
	}
	paths := make([]string, 0, count)
	for i := range uint64(count) {
		offset := header + binary.NativeEndian.Uint64(b[header+8*i:])
		if offset >= inoPathsSize {
			return nil, unix.EIO
		}
		paths = append(paths, unix.ByteSliceToString(b[offset:]))
	}
	return paths, nil
}

type fsInfoArgs struct {
	maxID      uint64
	numDevices uint64
	fsid       UUID
	_          [1024 - 32]byte
}

// FilesystemUUID is the UUID of the filesystem of fd, which is also its name under /sys/fs/btrfs.
func FilesystemUUID(fd int) (UUID, error) {
	args := &fsInfoArgs{}
	err := ioctl(fd, iocFSInfo, unsafe.Pointer(args))
	return args.fsid, err
}
