package detect

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// initialUserNamespace is the target of /proc/PID/ns/user of a process in the initial user namespace
// (PROC_USER_INIT_INO of include/linux/proc_ns.h). A map of user ids would not tell: a nested namespace can map all
// of them.
const initialUserNamespace = "user:[4026531837]"

// initialPIDNamespace is the target of /proc/PID/ns/pid of a process in the initial PID namespace (PROC_PID_INIT_INO).
const initialPIDNamespace = "pid:[4026531836]"

// InitialUserNamespace reports whether this process is in the initial user namespace. In any other, its capabilities
// do not count for some of the kernel's functions: btrfs send, qgroups, tree searches.
func InitialUserNamespace() (bool, error) { return inNamespace("user", initialUserNamespace) }

// InitialPIDNamespace reports whether this process is in the initial PID namespace. In any other, it sees the mount
// namespaces of processes in that namespace alone, and none without processes.
func InitialPIDNamespace() (bool, error) { return inNamespace("pid", initialPIDNamespace) }

func inNamespace(kind, initial string) (bool, error) {
	ns, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		return false, fmt.Errorf("detect: %s namespace: %w", kind, err)
	}
	return ns == initial, nil
}

// Capable reports whether the capability, a CAP_ constant of golang.org/x/sys/unix, is in the effective
// set of this thread, which counts within its user namespace.
func Capable(capability int) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // of 32 bits each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("detect: capabilities: %w", err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0, nil
}

// whyUnprivileged says why this process may not do operations that need CAP_SYS_ADMIN in the initial user namespace,
// or "" if it may.
func whyUnprivileged() (why string, err error) {
	initial, err := InitialUserNamespace()
	if err != nil {
		return "", err
	}
	if !initial {
		return "this process is in a nested user namespace, where the kernel does not allow it: run it in the initial one", nil
	}
	capable, err := Capable(unix.CAP_SYS_ADMIN)
	if err != nil {
		return "", err
	}
	if !capable {
		return "this process lacks CAP_SYS_ADMIN: run it as root, and in a container with that capability", nil
	}
	return "", nil
}
