package zfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zfsIocObjsetStats is of sys/fs/zfs.h, alike in all versions. What it reads of struct zfs_cmd is zc_name.
const zfsIocObjsetStats = 0x5a12

// exists asks the kernel, without running anything, whether a dataset or snapshot is there.
func (c *commands) exists(name string) (bool, error) {
	if err := c.checkPool(); err != nil {
		return false, err
	}
	if len(name) >= maxSnapshotName {
		return false, nil
	}
	control, err := os.OpenFile("/dev/zfs", os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer control.Close()
	cmd := make([]byte, cmdSize)
	copy(cmd[cmdName:], name)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), zfsIocObjsetStats, uintptr(unsafe.Pointer(&cmd[0])))
		runtime.KeepAlive(cmd)
		switch {
		case errno == 0:
			return true, nil
		case errors.Is(errno, unix.EINTR):
			continue
		case errors.Is(errno, unix.ENOENT):
			return false, nil
		}
		return false, fmt.Errorf("look for %s: %w", name, errno)
	}
}
