//go:build !linux

package limitalert

import "os/exec"

// killGroup does nothing: the daemon runs on Linux alone.
func killGroup(*exec.Cmd) {}
