package mounttable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// The numbers of linux/nsfs.h for mount namespaces (kernel 6.12).
const (
	nsMntGetInfo = 0x8010b70a
	nsMntGetNext = 0x8010b70b
	nsMntGetPrev = 0x8010b70c
)

// namespaceInfo is struct mnt_ns_info.
type namespaceInfo struct {
	size   uint32
	mounts uint32
	id     uint64
}

// namespace is a mount namespace, with its information if the kernel lists it.
type namespace struct {
	namespaceInfo
	inode uint64
	own   func() bool // it belongs to the user namespace of this process
}

// isOfProcess reports whether it is the mount namespace of this process.
func (n namespace) isOfProcess() bool {
	inode, err := namespaceOf("self", "mnt")
	return err == nil && inode == n.inode
}

// namespaces lists all mount namespaces of the machine, also those without processes.
func namespaces() (found []namespace, err error) {
	owned := sync.OnceValue(ownedNamespaces)
	err = eachListed(func(_ int, n namespace) error {
		n.own = func() bool { return owned()[n.id] }
		found = append(found, n)
		return nil
	})
	return found, err
}

// ownedNamespaces has the ids of the mount namespaces that belong to the user namespace of this process, as far as it can tell.
func ownedNamespaces() map[uint64]bool {
	owned := map[uint64]bool{}
	_ = eachListed(func(fd int, n namespace) error {
		owned[n.id] = isOwned(fd)
		return nil
	})
	return owned
}

// isOwned reports whether the namespace open as fd belongs to the user namespace of this process.
func isOwned(fd int) bool {
	owner, err := eintr.Retry(func() (int, error) { return unix.IoctlRetInt(fd, unix.NS_GET_USERNS) })
	if err != nil { // it belongs to one above
		return false
	}
	defer unix.Close(owner)
	user, err := namespaceOf("self", "user")
	if err != nil {
		return false
	}
	inode, err := inodeOf(owner)
	return err == nil && inode == user
}

// eachListed calls visit with all mount namespaces of the machine, each open as fd.
func eachListed(visit func(fd int, n namespace) error) error {
	own, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	first := namespace{namespaceInfo: namespaceInfo{size: uint32(unsafe.Sizeof(namespaceInfo{}))}}
	if _, err := namespaceIoctl(own, nsMntGetInfo, &first.namespaceInfo); err != nil {
		return err
	}
	if first.inode, err = inodeOf(own); err != nil {
		return err
	}
	if err := visit(own, first); err != nil {
		return err
	}
	for _, direction := range []uintptr{nsMntGetNext, nsMntGetPrev} {
		if err := eachBeyond(own, direction, visit); err != nil {
			return err
		}
	}
	return nil
}

// eachBeyond calls visit with the namespaces in one direction from the one open as fd.
func eachBeyond(fd int, direction uintptr, visit func(fd int, n namespace) error) (err error) {
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return err
	}
	for {
		n := namespace{namespaceInfo: namespaceInfo{size: uint32(unsafe.Sizeof(namespaceInfo{}))}}
		next, err := namespaceIoctl(fd, direction, &n.namespaceInfo)
		unix.Close(fd)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		fd = next
		if n.inode, err = inodeOf(fd); err == nil {
			err = visit(fd, n)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
	}
}

func namespaceIoctl(fd int, request uintptr, info *namespaceInfo) (int, error) {
	return eintr.Retry(func() (int, error) {
		result, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(info)))
		if errno != 0 {
			return -1, errno
		}
		return int(result), nil
	})
}

func inodeOf(fd int) (uint64, error) {
	var stat unix.Stat_t
	err := unix.Fstat(fd, &stat)
	return stat.Ino, err
}

// mountRequest is struct mnt_id_req of linux/mount.h.
type mountRequest struct {
	size      uint32
	_         uint32
	mount     uint64
	param     uint64
	namespace uint64
}

// What to ask statmount(2) for.
const (
	statmountSuperblock = 0x01
	statmountMount      = 0x02
	statmountRoot       = 0x08
	statmountPoint      = 0x10
	statmountOptions    = 0x80
	statmountSource     = 0x200 // from Linux 6.13
)

// fromRoot, as a mount, stands for all mounts below the root of a namespace (LSMT_ROOT).
const fromRoot = ^uint64(0)

// below appends the unique ids of the mounts below one, at any depth, in ascending order.
func (n namespace) below(mount uint64, ids []uint64) ([]uint64, error) {
	request := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), mount: mount, namespace: n.id}
	for {
		if cap(ids) == len(ids) {
			ids = append(ids, make([]uint64, max(512, len(ids)))...)[:len(ids)]
		}
		space := ids[len(ids):cap(ids)]
		got, _, errno := unix.Syscall6(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&request)),
			uintptr(unsafe.Pointer(&space[0])), uintptr(len(space)), 0, 0, 0)
		if errno != 0 {
			return ids, errno
		}
		if ids = ids[:len(ids)+int(got)]; int(got) < len(space) {
			return ids, nil
		}
		request.param = ids[len(ids)-1]
	}
}

// all lists the unique ids of all mounts of the namespace, but perhaps not that of its very first one.
func (n namespace) all(ids []uint64) ([]uint64, error) {
	ids, err := n.below(fromRoot, ids[:0])
	if err != nil || len(ids)+1 >= int(n.mounts) || len(ids) == 0 {
		return ids, err
	}
	// Something is mounted over the root, or this process is below a root of its own. All of them hang from the first.
	first := ids[0]
	for buffer := newStatmountBuffer(); ; {
		m, err := n.stat(first, statmountMount, buffer)
		if errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return nil, err
		}
		if m.parent() == first {
			break
		}
		first = m.parent()
	}
	return n.below(first, ids[:0])
}

// mountStat is struct statmount, with the strings that follow it.
type mountStat []byte

const mountStatSize = 512

func newStatmountBuffer() mountStat { return make(mountStat, mountStatSize+8192) }

func (s mountStat) u32(offset int) uint32 { return binary.NativeEndian.Uint32(s[offset:]) }
func (s mountStat) has(what uint64) bool  { return binary.NativeEndian.Uint64(s[8:])&what == what }
func (s mountStat) device() uint64        { return unix.Mkdev(s.u32(16), s.u32(20)) }
func (s mountStat) magic() uint64         { return binary.NativeEndian.Uint64(s[24:]) }
func (s mountStat) parent() uint64        { return binary.NativeEndian.Uint64(s[48:]) }
func (s mountStat) options() string       { return s.text(4) }
func (s mountStat) root() string          { return s.text(104) }
func (s mountStat) point() string         { return s.text(108) }
func (s mountStat) source() string        { return s.text(124) }

// text is the string whose place is at that offset.
func (s mountStat) text(offset int) string {
	text := s[mountStatSize+s.u32(offset):]
	return string(text[:max(0, bytes.IndexByte(text, 0))])
}

// stat describes a mount of the namespace. It uses buffer, or a larger buffer, which it returns.
func (n namespace) stat(mount, what uint64, buffer mountStat) (mountStat, error) {
	request := mountRequest{size: uint32(unsafe.Sizeof(mountRequest{})), mount: mount, param: what, namespace: n.id}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&request)),
			uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)), 0, 0, 0)
		switch errno {
		case 0:
			return buffer, nil
		case unix.EOVERFLOW:
			buffer = make(mountStat, 4*len(buffer))
		default:
			return buffer, os.NewSyscallError("statmount", errno)
		}
	}
}
