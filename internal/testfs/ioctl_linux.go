package testfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// The ioctls of linux/btrfs.h that the helpers need. They are repeated here and not shared with the code under test,
// so that an error in that code is not repeated in its judge.
const (
	iocSync            = 0x9408
	iocInoLookup       = 0xD0009412
	iocFsInfo          = 0x8400941F
	iocQuotaCtl        = 0xC0109428
	iocQuotaRescanWait = 0x942E
	iocTreeSearchV2    = 0xC0709411

	quotaCtlEnable       = 1 // BTRFS_QUOTA_CTL_ENABLE
	quotaCtlEnableSimple = 4 // BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA, Linux 6.7
)

var errNoSimpleQuota = errors.New("needs simple quotas, Linux 6.7 or later")

type quotaCtlArgs struct {
	cmd    uint64
	status uint64
}

// enableQuota turns quotas on for the filesystem mounted on mnt. For classic qgroups it returns when the
// rescan that this starts has ended: before that, usage and limits mean nothing.
func enableQuota(mnt string, mode quotaMode) error {
	switch mode {
	case quotaSimple:
		err := ioctlPath(mnt, iocQuotaCtl, unsafe.Pointer(&quotaCtlArgs{cmd: quotaCtlEnableSimple}))
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return errNoSimpleQuota
		}
		return wrap("enable simple quotas", err)
	case quotaClassic:
		if err := ioctlPath(mnt, iocQuotaCtl, unsafe.Pointer(&quotaCtlArgs{cmd: quotaCtlEnable})); err != nil {
			return wrap("enable classic quotas", err)
		}
		return wrap("wait for the quota rescan", ioctlPath(mnt, iocQuotaRescanWait, nil))
	default:
		return nil
	}
}

// fsid returns the UUID of the btrfs that holds path, in the form that sysfs uses.
func fsid(path string) (string, error) {
	var args [1024]byte // struct btrfs_ioctl_fs_info_args: max_id, num_devices, fsid[16], …
	if err := ioctlPath(path, iocFsInfo, unsafe.Pointer(&args)); err != nil {
		return "", wrap("filesystem info of "+path, err)
	}
	id := args[16:32]
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]), nil
}

// searchItem is an item of a btrfs tree.
type searchItem struct {
	objectID uint64
	kind     uint32
	offset   uint64
	data     []byte
}

// Numbers of btrfs_tree.h.
const (
	rootTreeID      = 1
	firstFreeID     = 256
	lastFreeID      = ^uint64(0) - 255 // -256 as unsigned
	rootItemKey     = 132
	rootBackrefKey  = 144
	searchBufSize   = 64 << 10
	searchHeaderLen = 32
)

type searchKey struct {
	treeID                   uint64
	minObjectID, maxObjectID uint64
	minOffset, maxOffset     uint64
	minTransID, maxTransID   uint64
	minKind, maxKind         uint32
	items                    uint32
	_                        uint32
	_                        [4]uint64
}

// searchRoots calls yield for each item of the root tree that belongs to a subvolume: roots, and references from a
// root to its parent.
func searchRoots(mnt string, yield func(searchItem) error) error {
	f, err := os.Open(mnt)
	if err != nil {
		return err
	}
	defer f.Close()

	var args struct {
		key     searchKey
		bufSize uint64
		buf     [searchBufSize]byte
	}
	minID, minKind, minOffset := uint64(firstFreeID), uint32(rootItemKey), uint64(0)
	for {
		args.key = searchKey{
			treeID: rootTreeID, items: ^uint32(0),
			minObjectID: minID, maxObjectID: lastFreeID,
			minKind: minKind, maxKind: rootBackrefKey,
			minOffset: minOffset, maxOffset: ^uint64(0), maxTransID: ^uint64(0),
		}
		args.bufSize = searchBufSize
		if err := ioctl(f, iocTreeSearchV2, unsafe.Pointer(&args)); err != nil {
			return wrap("tree search", err)
		}
		if args.key.items == 0 {
			return nil
		}
		buf := args.buf[:]
		var last searchItem
		for range args.key.items {
			// struct btrfs_ioctl_search_header, in the byte order of the machine: transid, objectid,
			// offset, type, len.
			n := binary.NativeEndian.Uint32(buf[28:])
			last = searchItem{
				objectID: binary.NativeEndian.Uint64(buf[8:]),
				offset:   binary.NativeEndian.Uint64(buf[16:]),
				kind:     binary.NativeEndian.Uint32(buf[24:]),
				data:     buf[searchHeaderLen : searchHeaderLen+n],
			}
			buf = buf[searchHeaderLen+n:]
			if last.objectID < firstFreeID || last.objectID > lastFreeID {
				continue
			}
			if err := yield(last); err != nil {
				return err
			}
		}
		minID, minKind, minOffset = last.objectID, last.kind, last.offset+1
		if minOffset == 0 {
			minKind++
		}
	}
}

// dirPath returns the path of directory inode ino inside subvolume tree, ending in a slash, or "" for its
// root.
func dirPath(mnt string, tree, ino uint64) (string, error) {
	var args struct {
		treeID   uint64
		objectID uint64
		name     [4080]byte
	}
	args.treeID, args.objectID = tree, ino
	if err := ioctlPath(mnt, iocInoLookup, unsafe.Pointer(&args)); err != nil {
		return "", wrap(fmt.Sprintf("look up inode %d of subvolume %d", ino, tree), err)
	}
	return unix.ByteSliceToString(args.name[:]), nil
}

func ioctlPath(path string, request uintptr, arg unsafe.Pointer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return ioctl(f, request, arg)
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	return eintr.Ignore(func() error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	})
}

func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}
