package testfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var errNoLoop = errors.New("needs loop devices (/dev/loop-control)")

// Loop attaches the image to a loop device, until the test ends or detach is called.
func Loop(t testing.TB, image string) (device string, detach func()) {
	t.Helper()
	loop, err := attachLoop(image)
	if errors.Is(err, errNoLoop) {
		Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	detach = sync.OnceFunc(func() {
		if err := loop.Close(); err != nil {
			t.Errorf("testfs: %v", err)
		}
		waitDetached(t, loop.Name(), image)
	})
	t.Cleanup(detach)
	return loop.Name(), detach
}

// attachLoop attaches the image to a free loop device that detaches itself once its last user is gone, and
// returns that device open. The interface is that of linux/loop.h, Linux 5.8 or later.
func attachLoop(image string) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoLoop, err)
	}
	defer control.Close()
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()

	// Between asking for a free device and taking it another process may take it.
	for range 256 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoLoop, err)
		}
		loop, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s to %s: %w", image, loop.Name(), err)
		}
	}
	return nil, fmt.Errorf("attach %s: other processes took every loop device", image)
}

// openLoop opens loop device n. Where no one runs udev or devtmpfs (some containers) it makes the node.
func openLoop(n int) (*os.File, error) {
	name := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(name, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return loop, err
	}
	const loopMajor = 7
	if err := unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	return os.OpenFile(name, os.O_RDWR, 0)
}

// waitDetached waits until the loop device has let go of the image, which happens when the last of its
// users closes it: an udev that looks at new devices may take a moment.
func waitDetached(t testing.TB, device, image string) {
	t.Helper()
	ok := eventually(patience, func() bool {
		data, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
		return err != nil || strings.TrimSuffix(strings.TrimSpace(string(data)), " (deleted)") != image
	})
	if !ok {
		t.Errorf("testfs: %s is still attached to %s after the unmount", device, image)
	}
}

// patience is how long the kernel may take until the things of a test are free. Tests of failures have less.
var patience = Patience

// eventually polls a condition that another process or the kernel brings about, and reports whether it held
// before the time was up. It looks a last time after that: the machine may have been busy with something else meanwhile.
func eventually(limit time.Duration, condition func() bool) bool {
	deadline := time.Now().Add(limit)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		last := time.Now().After(deadline)
		if condition() {
			return true
		}
		if last {
			return false
		}
		time.Sleep(wait)
	}
}
