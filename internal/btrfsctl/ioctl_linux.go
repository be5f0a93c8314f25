package btrfsctl

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// ioctl request numbers of include/uapi/linux/btrfs.h (magic 0x94).
const (
	iocSync              = 0x9408
	iocTreeSearch        = 0xD0009411
	iocInoLookup         = 0xD0009412
	iocSnapCreateV2      = 0x50009417
	iocSubvolCreateV2    = 0x50009418
	iocSubvolGetFlags    = 0x80089419
	iocSubvolSetFlags    = 0x4008941A
	iocStartSync         = 0x80089418
	iocWaitSync          = 0x40089416
	iocFSInfo            = 0x8400941F
	iocInoPaths          = 0xC0389423
	iocSend              = 0x40489426
	iocGetSubvolInfo     = 0x81F8943C
	iocGetSubvolRootRef  = 0xD000943D
	iocSnapDestroyV2     = 0x5000943F
	iocSubvolSyncWait    = 0x40109441
	iocSetReceivedSubvol = 0xC0C89425
)

// ioctl issues one request and retries it when a signal interrupts it. That is right for all requests but
// iocSend: they wait for something, or have not begun when the kernel says EINTR. arg must point to memory that
// holds no Go pointers the kernel writes through; buffers it refers to are kept alive by the callers.
func ioctl(fd int, req uint, arg unsafe.Pointer) error {
	return eintr.Ignore(func() error { return ioctlOnce(fd, req, arg) })
}

// ioctlOnce issues one request once.
func ioctlOnce(fd int, req uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}
