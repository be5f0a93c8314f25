package rootdir

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// open opens a name part by part, so that no part can be a symbolic link.
func (d *Dir) open(name string, dir bool) (*os.File, error) {
	parts, err := d.parts(name)
	if err != nil {
		return nil, err
	}
	at := int(d.file.Fd())
	for i, part := range parts {
		flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
		if dir || i < len(parts)-1 {
			flags |= unix.O_DIRECTORY
		}
		fd, err := eintr.Retry(func() (int, error) { return unix.Openat(at, part, flags, 0) })
		if at != int(d.file.Fd()) {
			_ = unix.Close(at) // it was open for reading only
		}
		switch {
		// With O_DIRECTORY the kernel says ENOTDIR of a symbolic link, without it ELOOP. A socket gives ENXIO.
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return nil, d.refuse(name, "a symbolic link, or not a directory")
		case errors.Is(err, unix.ENXIO):
			return nil, d.refuse(name, "not a regular file")
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: d.Join(name), Err: err}
		}
		at = fd
	}
	return os.NewFile(uintptr(at), d.Join(name)), nil
}
