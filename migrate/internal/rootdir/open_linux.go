package rootdir

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// openDir opens a directory.
func (d *Dir) openDir(name string) (*os.File, error) {
	return d.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
}

// find opens a name without its data: no driver of a device takes notice. The last part may be a symbolic link.
func (d *Dir) find(name string) (*os.File, error) {
	return d.open(name, unix.O_PATH)
}

// reopen opens the data of a regular file that was found, even if it has another name by now.
func reopen(found *os.File) (*os.File, error) {
	path := treeat.ProcPath(int(found.Fd()), "")
	fd, err := eintr.Retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: found.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), found.Name()), nil
}

// ownerOf is the owner of an open file.
func ownerOf(file *os.File) (uid, gid uint32, err error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: file.Name(), Err: err}
	}
	return stat.Uid, stat.Gid, nil
}

// open opens a name part by part, so that no part but the last can be a symbolic link.
func (d *Dir) open(name string, lastFlags int) (*os.File, error) {
	parts, err := d.parts(name)
	if err != nil {
		return nil, err
	}
	at := int(d.file.Fd())
	for i, part := range parts {
		flags := unix.O_RDONLY | unix.O_DIRECTORY
		if i == len(parts)-1 {
			flags = lastFlags
		}
		fd, err := eintr.Retry(func() (int, error) { return unix.Openat(at, part, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) })
		if at != int(d.file.Fd()) {
			_ = unix.Close(at) // it was open for reading only
		}
		switch {
		// With O_DIRECTORY the kernel says ENOTDIR of a symbolic link.
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return nil, d.refuse(name, "a symbolic link, or not a directory")
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: d.Join(name), Err: err}
		}
		at = fd
	}
	return os.NewFile(uintptr(at), d.Join(name)), nil
}
