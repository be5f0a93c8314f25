package testfs

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Ended reports whether a process has ended that nobody has waited for.
func Ended(t testing.TB, cmd *exec.Cmd) bool {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil); err != nil {
		t.Fatalf("testfs: look at process %d: %v", cmd.Process.Pid, err)
	}
	return info.Signo != 0
}
