package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// steps are the system calls that change the disk, or stand between such calls.
var steps = []uint64{
	unix.SYS_IOCTL, unix.SYS_OPENAT, unix.SYS_MKDIRAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT,
	unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_SYNCFS, unix.SYS_MOUNT,
	unix.SYS_UMOUNT2, unix.SYS_UTIMENSAT, unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_OPENAT2,
	unix.SYS_CLOSE, unix.SYS_WAITID, unix.SYS_FLOCK, unix.SYS_SYMLINKAT, unix.SYS_FSYNC,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
}

// markStep is the system call by which a victim says where the calls that count begin and end: it asks for
// the execution domain, which nothing else does.
func markStep() { _, _, _ = unix.RawSyscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0) }

const noSuchCall = 4095

// acknowledge is the system call by which a victim says that it has handled a signal: a call that the kernel does not
// have.
func acknowledge() { _, _, _ = unix.RawSyscall(noSuchCall, 0, 0, 0) }

// killAt runs cmd and kills it with SIGKILL as it enters its nth step, counted from 1 over all threads and
// from its first mark. 0: never. It returns how many steps were entered before the second mark, and whether
// cmd was killed.
func killAt(cmd *exec.Cmd, n int) (counted int, killed bool, err error) {
	killed, err = trace(cmd, func(call uint64) (kill bool) {
		if !slices.Contains(steps, call) {
			return false
		}
		counted++
		return counted == n
	})
	return counted, killed, err
}

// trace runs cmd and calls enter with each system call that it is about to make between its marks. It kills
// cmd with SIGKILL, before the call is made, when enter says so.
func trace(cmd *exec.Cmd, enter func(call uint64) (kill bool)) (killed bool, err error) {
	return traceStops(cmd, func(s *callStop) (hold bool, err error) {
		if s.entry && enter(s.call) {
			return false, unix.Kill(s.pid, unix.SIGKILL)
		}
		return false, nil
	})
}

// callStop is a thread of a traced process that is stopped as it enters a system call or leaves it.
type callStop struct {
	pid, tid int
	entry    bool
	call     uint64    // at the entry
	args     [6]uint64 // at the entry
}

// traceStops runs cmd and calls at with each stop between its marks. A held call stays stopped until the process
// acknowledges. killed: the process was ended by a signal.
func traceStops(cmd *exec.Cmd, at func(s *callStop) (hold bool, err error)) (killed bool, err error) {
	runtime.LockOSThread() // a tracee has one thread as its tracer
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	// The process is waited for below; only its output is left to wait for.
	defer func() { _ = cmd.Wait() }()
	pid := cmd.Process.Pid
	const longest = 2 * testfs.Patience // the processes in question need a second
	held := 0
	watchdog := time.AfterFunc(longest, func() {
		_ = unix.Kill(pid, unix.SIGQUIT) // has Go's runtime print the goroutines
		time.Sleep(5 * time.Second)
		_ = unix.Kill(pid, unix.SIGKILL)
	})
	defer func() {
		if !watchdog.Stop() && err == nil {
			err = fmt.Errorf("not through within %v; held thread: %d", longest, held)
		}
	}()
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil { // the stop at execve
		return false, err
	}
	const sysgood = 0x80
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return false, err
	}
	marks := 0
	tid := pid
	for {
		signal := 0
		if status.Stopped() {
			if s := status.StopSignal(); s != unix.SIGTRAP && s != unix.SIGTRAP|sysgood && s != unix.SIGSTOP {
				signal = int(s)
			}
		}
		if tid != held {
			if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, fmt.Errorf("continue: %w", err)
			}
		}
		// Threads of its process group only: whatever else this thread of the test program has started, for another
		// goroutine before it was locked too, is for others to wait for.
		tid, err = unix.Wait4(-pid, &status, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("wait: %w", err)
		case tid == pid && (status.Exited() || status.Signaled()):
			if status.Exited() && status.ExitStatus() != 0 {
				err = fmt.Errorf("exit status %d", status.ExitStatus())
			}
			return status.Signaled(), err
		case !status.Stopped() || status.StopSignal() != unix.SIGTRAP|sysgood:
			continue
		}
		s, ok := stopOf(pid, tid)
		switch {
		case !ok:
		case s.entry && s.call == unix.SYS_PERSONALITY:
			marks++
		case s.entry && s.call == noSuchCall && held != 0:
			if err := unix.PtraceSyscall(held, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, fmt.Errorf("continue: %w", err)
			}
			held = 0
		case marks == 1:
			hold, err := at(&s)
			if err != nil {
				return false, err
			}
			if hold {
				held = tid
			}
		}
	}
}

// stopOf reads the call that a stopped thread is about to do or has done, by PTRACE_GET_SYSCALL_INFO (struct
// ptrace_syscall_info).
func stopOf(pid, tid int) (s callStop, ok bool) {
	const getSyscallInfo, opEntry, opExit = 0x420e, 1, 2
	var info [88]byte
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || info[0] != opEntry && info[0] != opExit {
		return callStop{}, false
	}
	s = callStop{pid: pid, tid: tid, entry: info[0] == opEntry}
	if s.entry {
		s.call = binary.NativeEndian.Uint64(info[24:])
		for i := range s.args {
			s.args[i] = binary.NativeEndian.Uint64(info[32+8*i:])
		}
	}
	return s, true
}
