package cowdriver

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// openInRoot opens name for reading with symbolic links, absolute ones too, resolved as if root were the
// root directory. It does not wait for the writer of a fifo.
func openInRoot(root *os.Root, name string) (*os.File, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(int(dir.Fd()), name, how)
	// A rename or mount, anywhere on the host, while the kernel followed a ".." gives EAGAIN (openat2(2)).
	for errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat2(int(dir.Fd()), name, how)
	}
	if errors.Is(err, unix.ENOSYS) {
		return root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
