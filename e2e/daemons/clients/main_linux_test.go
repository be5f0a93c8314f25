package clients

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// apartEnv says how far this process is apart from the machine: empty, then asInit in namespaces of its own, then
// asTests below that one.
const (
	apartEnv = "COWSHED_CLIENTS_APART"
	asInit   = "init"
	asTests  = "tests"
)

func TestMain(m *testing.M) {
	stage := os.Getenv(apartEnv)
	if os.Getuid() != 0 {
		stage = asTests // which skip
	}
	var code int
	var err error
	switch stage {
	case "":
		code, err = runApart()
	case asInit:
		code, err = runAsInit()
	default:
		code, err = m.Run(), harness.RemoveCowshed()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// again is this program with the same arguments, at another stage.
func again(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), apartEnv+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// runApart runs this program again in network, mount and process namespaces of its own, and returns how it ended. When
// this process is killed, the kernel ends all that the suites have started, and takes away their mounts.
func runApart() (int, error) {
	cmd := again(asInit)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID,
		// Go makes all mounts private where it is Unshareflags that have CLONE_NEWNS.
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:    unix.SIGKILL,
	}
	before := cgroups()
	err := cmd.Run()
	err = errors.Join(err, removeCgroups(before))
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// cgroups lists those of which the suites' containers are below, in all hierarchies: BuildKit's, those of containerd's
// plugin for Kubernetes, nerdctl's, and those of the suite of containerd's client.
func cgroups() []string {
	var found []string
	for _, name := range []string{"buildkit", "k8s.io", "default", "testing"} {
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			dirs, _ := filepath.Glob(pattern + name) // the pattern is right
			found = append(found, dirs...)
		}
	}
	return found
}

// removeCgroups removes those that were not there before, and that nobody else uses. The tests' processes have ended.
func removeCgroups(before []string) error {
	var all error
	for _, top := range cgroups() {
		if slices.Contains(before, top) {
			continue
		}
		var dirs []string
		err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		for _, dir := range slices.Backward(dirs) {
			if e := os.Remove(dir); !errors.Is(e, unix.EBUSY) {
				err = errors.Join(err, e)
			}
		}
		all = errors.Join(all, err)
	}
	return all
}

// runAsInit prepares the namespaces, runs the tests, and reaps processes that daemons leave to the first process.
func runAsInit() (int, error) {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return 0, fmt.Errorf("set up the loopback interface: %w", err)
	}
	cmd := again(asTests)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the tests: %w", err)
		case pid == cmd.Process.Pid && status.Signaled():
			return 0, fmt.Errorf("the tests ended by signal: %s", status.Signal())
		case pid == cmd.Process.Pid:
			return status.ExitStatus(), nil
		}
	}
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
