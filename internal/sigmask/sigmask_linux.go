package sigmask

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f on a thread that takes no signals, and returns its error. Other threads take those of the process.
// Signals to this thread, as from the Go runtime, wait until f has returned.
//
// Some events cannot be blocked, and interrupt a system call. SIGKILL ends the process. After SIGSTOP, the freezing
// of a cgroup and a debugger, the kernel begins the call anew.
func Do(f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return err
	}
	defer func() {
		if restored := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err == nil {
			err = restored
		}
	}()
	return f()
}
