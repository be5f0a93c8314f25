// Package loopdevice attaches files to loop devices.
package loopdevice

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Attach gives a file a free loop device that detaches itself once its last user is gone, and returns that device open.
// path is the file's, for people. flags are those of the device beside LO_FLAGS_AUTOCLEAR. Returns
// errdefs.ErrNotImplemented if there are no loop devices. The interface is that of linux/loop.h, Linux 5.8 or later.
func Attach(file *os.File, path string, flags uint32) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fault.New(errdefs.ErrNotImplemented, "there are no loop devices here: %w", err)
	}
	defer control.Close()

	// Between asking for a free device and taking it another process may take it.
	for range 256 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := open(n, Access(flags))
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = flags | unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach to %s: %w", loop.Name(), err)
		}
	}
	return nil, errors.New("other processes took every loop device")
}

// Access is how a device with these flags is opened.
func Access(flags uint32) int {
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		return os.O_RDONLY
	}
	return os.O_RDWR
}

// open opens loop device n. Where no one makes device nodes, as in some containers, it makes the node.
func open(n, flag int) (*os.File, error) {
	name := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(name, flag, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return loop, err
	}
	const loopMajor = 7 // LOOP_MAJOR in linux/major.h
	if err := unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	return os.OpenFile(name, flag, 0)
}
