package testfs

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

const fuseDevice = "/dev/fuse"

// DeadServer mounts a filesystem on dir whose server does not answer: a process that asks it for something, as
// stat(2) does, waits until end is called or the test ends.
func DeadServer(t testing.TB, dir string) (end func()) {
	t.Helper()
	return DeadServerOf(t, dir, 0)
}

// DeadServerOf is DeadServer for a filesystem of a user: nobody else may look at its files.
func DeadServerOf(t testing.TB, dir string, user int) (end func()) {
	t.Helper()
	Root(t)
	server, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		_ = unix.Mount("dead-server", dir, "fuse", 0, "") // it fails for want of options, and the kernel loads the module for it
		server, err = unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		Skip(t, "needs %s: %v", fuseDevice, err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=0", server, user)
	if err := unix.Mount("dead-server", dir, "fuse", 0, options); err != nil {
		unix.Close(server)
		t.Fatalf("testfs: mount fuse on %s: %v", dir, err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		unix.Close(server) // waiting processes get ENOTCONN
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("testfs: unmount %s: %v", dir, err)
		}
	}
	t.Cleanup(end)
	return end
}
