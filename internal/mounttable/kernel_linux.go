package mounttable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
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
	own   bool // it belongs to the user namespace of this process
}

// look finds out about the namespace that is open as fd. user is the user namespace of this process.
func (n *namespace) look(fd int, user uint64) (err error) {
	if n.inode, err = inodeOf(fd); err != nil {
		return err
	}
	owner, err := eintr.Retry(func() (int, error) { return unix.IoctlRetInt(fd, unix.NS_GET_USERNS) })
	if errors.Is(err, unix.EPERM) { // it belongs to one above
		return nil
	}
	if err != nil {
		return os.NewSyscallError("ioctl", err)
	}
	defer unix.Close(owner)
	inode, err := inodeOf(owner)
	n.own = inode == user
	return err
}

// namespaces lists all mount namespaces of the machine, also those without processes.
func namespaces() ([]namespace, error) {
	own, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(own)
	user, err := namespaceOf("self", "user")
	if err != nil {
		return nil, err
	}
	first := namespace{namespaceInfo: namespaceInfo{size: uint32(unsafe.Sizeof(namespaceInfo{}))}}
	if _, err := namespaceIoctl(own, nsMntGetInfo, &first.namespaceInfo); err != nil {
		return nil, err
	}
	if err := first.look(own, user); err != nil {
		return nil, err
	}
	found := []namespace{first}
	for _, direction := range []uintptr{nsMntGetNext, nsMntGetPrev} {
		more, err := namespacesBeyond(own, direction, user)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// namespacesBeyond lists the namespaces in one direction from the one open as fd.
func namespacesBeyond(fd int, direction uintptr, user uint64) (found []namespace, err error) {
	if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, err
	}
	for {
		n := namespace{namespaceInfo: namespaceInfo{size: uint32(unsafe.Sizeof(namespaceInfo{}))}}
		next, err := namespaceIoctl(fd, direction, &n.namespaceInfo)
		unix.Close(fd)
		if errors.Is(err, unix.ENOENT) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		fd = next
		if err := n.look(fd, user); err != nil {
			unix.Close(fd)
			return nil, err
		}
		found = append(found, n)
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
