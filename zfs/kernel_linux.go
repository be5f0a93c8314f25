package zfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// zfsIocObjsetStats is from sys/fs/zfs.h, and the same in all versions. It reads zc_name of struct zfs_cmd, and nothing
// else.
const zfsIocObjsetStats = 0x5a12

// exists asks the kernel, without running anything, whether a dataset or snapshot exists.
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
	err = eintr.Ignore(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), zfsIocObjsetStats, uintptr(unsafe.Pointer(&cmd[0])))
		runtime.KeepAlive(cmd)
		if errno != 0 {
			return errno
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", name, err)
	}
	return true, nil
}
