package migrate

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// inContainer calls f with the path of the root filesystem of a process in a container, without the mounts below its root.
func inContainer(t *testing.T, pid int, f func(root string)) {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	opened := make(chan result)
	onOtherThread(func() {
		fd, err := openRoot(pid)
		opened <- result{fd, err}
	})
	r := <-opened
	require.NoError(t, r.err)
	defer func() { require.NoError(t, unix.Close(r.fd)) }()
	f(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.fd))
}

// onOtherThread calls f in a goroutine whose thread ends with it, so that f may change the thread's namespace.
func onOtherThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process never ends. It is locked while another one is taken.
			defer runtime.UnlockOSThread()
			done := make(chan struct{})
			onOtherThread(func() { defer close(done); f() })
			<-done
			return
		}
		f()
	}()
}

// openRoot opens a copy of the mount of a process's root. It leaves the thread in the process's mount namespace.
func openRoot(pid int) (int, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return 0, os.NewSyscallError("setns", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return fd, os.NewSyscallError("open_tree", err)
}
