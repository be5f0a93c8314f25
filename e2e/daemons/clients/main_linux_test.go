package clients

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// apartEnv says that this process has the namespaces of its own already.
const apartEnv = "COWSHED_CLIENTS_APART"

func TestMain(m *testing.M) {
	if os.Getuid() == 0 && os.Getenv(apartEnv) == "" {
		os.Exit(runApart())
	}
	if os.Getuid() == 0 {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "clients: set up the loopback interface:", err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if err := harness.RemoveCowshed(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// runApart runs this program again in network and mount namespaces of its own, and returns how it ended.
func runApart() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), apartEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Unshareflags, not Cloneflags: Go then makes all mounts private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients: run in namespaces of its own:", err)
		return 1
	}
	return 0
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
