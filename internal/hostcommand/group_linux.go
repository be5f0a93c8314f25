package hostcommand

import (
	"os/exec"
	"syscall"
)

// killGroup makes a command that is cancelled end with all processes that it has started.
func killGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
