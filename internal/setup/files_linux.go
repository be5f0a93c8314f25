package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/flock"
)

// lock keeps others from changing configurations in a directory.
func lock(ctx context.Context, dir string) (unlock func(), err error) { return flock.Dir(ctx, dir) }

// copyAttributes gives a new file the owner, mode and extended attributes of the file that it will replace.
func copyAttributes(f *os.File, file string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: the owner is not known", file)
	}
	own, err := f.Stat()
	if err != nil {
		return err
	}
	if now := own.Sys().(*syscall.Stat_t); now.Uid != stat.Uid || now.Gid != stat.Gid {
		if err := f.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
			return err
		}
	}
	if err := f.Chmod(info.Mode().Perm() | info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return copyXattrs(f, file)
}

// hardLinks is how many names a file has.
func hardLinks(info fs.FileInfo) uint64 {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 1
	}
	return uint64(stat.Nlink) //nolint:unconvert // it is of another type on other processors
}

// maxXattrs is the most that the kernel gives out of names, and of a value.
const maxXattrs = 1 << 16

func copyXattrs(f *os.File, file string) error {
	names := make([]byte, maxXattrs)
	n, err := unix.Llistxattr(file, names)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "llistxattr", Path: file, Err: err}
	}
	value := make([]byte, maxXattrs)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		size, err := unix.Lgetxattr(file, name, value)
		if err == nil {
			err = unix.Fsetxattr(int(f.Fd()), name, value[:size], 0)
		}
		if err != nil {
			return &fs.PathError{Op: "copy attribute " + name + " of", Path: file, Err: err}
		}
	}
	return nil
}
