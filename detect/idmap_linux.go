package detect

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// idMapped has the answer to IDMappedMounts by filesystem type, if it is a definite one.
var idMapped sync.Map

// IDMappedMounts reports whether the filesystem of dir can be mounted with other user and group ids than it
// has stored. It tries with a detached mount, which nothing else sees. Definite answers are remembered for
// each type of filesystem.
func IDMappedMounts(dir string) error {
	f, err := Probe(dir)
	if err != nil {
		return err
	}
	if answer, ok := idMapped.Load(f.Magic); ok {
		err, _ := answer.(error)
		return err
	}
	err = tryIDMap(f.Path)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOSYS):
		err = notSupported("id-mapped mounts", "kernel 5.12 or later is needed", err)
	case errors.Is(err, unix.EINVAL):
		err = notSupported("id-mapped mounts", f.Type+" of this kernel does not have them", err)
	case errors.Is(err, unix.EPERM):
		// Of this process, and so not to be remembered for the filesystem.
		return notSupported("id-mapped mounts", whyRefused(), err)
	default:
		return fmt.Errorf("detect: id-mapped mounts: %w", err)
	}
	idMapped.Store(f.Magic, err)
	return err
}

func tryIDMap(dir string) error {
	userns, err := newUserNamespace()
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer userns.Close()
	mount, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(mount)
	err = unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP,
		Userns_fd: uint64(userns.Fd()),
	})
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// newUserNamespace makes a user namespace with one mapped id. A namespace needs a process to be made in: a
// child of this one, which is traced, so that it stops before it would run anything, and ended.
func newUserNamespace() (*os.File, error) {
	// Only the thread that has started a traced process may deal with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	child, err := os.StartProcess("/proc/self/exe", []string{"cowshed-probe"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 1, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 1, Size: 1}},
		Ptrace:      true,
		Pdeathsig:   syscall.SIGKILL,
	}})
	if err != nil {
		return nil, err
	}
	userns, err := os.Open("/proc/" + strconv.Itoa(child.Pid) + "/ns/user")
	if killErr := child.Kill(); err == nil {
		err = killErr
	}
	if waitErr := reap(child.Pid); err == nil {
		err = waitErr
	}
	_ = child.Release()
	if err != nil && userns != nil {
		_ = userns.Close()
		return nil, err
	}
	return userns, err
}

// reap waits for the end of a traced child, past the stops that tracing reports first.
func reap(pid int) error {
	for {
		var status unix.WaitStatus
		_, err := eintr.Retry(func() (int, error) { return unix.Wait4(pid, &status, 0, nil) })
		switch {
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case status.Exited() || status.Signaled():
			return nil
		}
	}
}
