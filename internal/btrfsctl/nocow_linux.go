package btrfsctl

import (
	"os"

	"golang.org/x/sys/unix"
)

// fsNoCOW is FS_NOCOW_FL of include/uapi/linux/fs.h.
const fsNoCOW = 0x00800000

// OverwritesInPlace reports whether writes to a file replace its data on the same space (chattr +C), so that they
// need none.
func OverwritesInPlace(f *os.File) (bool, error) {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return flags&fsNoCOW != 0, err
}

// OverwriteInPlace makes an empty file be overwritten in place. It then has no checksums.
func OverwriteInPlace(f *os.File) error {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|fsNoCOW))
}
