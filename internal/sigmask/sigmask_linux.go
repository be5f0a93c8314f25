package sigmask

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f on a thread that takes no signals, and returns its error. Other threads take those of the process; what
// is sent to this thread, as by the Go runtime, waits until f has returned.
//
// What cannot be blocked still interrupts a system call: SIGKILL, which ends the process, and SIGSTOP, the freezing of
// a cgroup and a debugger, after which the kernel begins the call anew.
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
