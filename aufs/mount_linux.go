package aufs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/admintool"
)

// MsRemount is the flag of mount(2) that changes a mount, as the driver does to add branches.
const MsRemount = unix.MS_REMOUNT

// Unmount unmounts a layer. Before, it has auplink make hard links across branches real, if that program is there.
func Unmount(target string) error {
	if auplink, err := admintool.Look("auplink"); err == nil {
		_ = exec.Command(auplink, target, "flush").Run() // as Docker did: such links are then copies
	}
	return os.NewSyscallError("umount "+target, unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
}

// mountBranches mounts branches by aufs, the first one writable. Options of mount(2) have at most a page. So further
// branches are appended one by one.
func mountBranches(target string, branches []string, mountLabel string) error {
	first, rest := branchOptions(branches)
	data := label.FormatMountLabel(first, mountLabel)
	switch err := unix.Mount("none", target, "aufs", 0, data); {
	case errors.Is(err, unix.ENODEV):
		return ErrAufsNotSupported
	case err != nil:
		return fmt.Errorf("mount %s: %w", target, err)
	}
	for _, branch := range rest {
		data := label.FormatMountLabel("append:"+branch+"=ro+wh", mountLabel)
		if err := unix.Mount("none", target, "aufs", MsRemount, data); err != nil {
			return errors.Join(fmt.Errorf("append %s to %s: %w", branch, target, err), Unmount(target))
		}
	}
	return nil
}

// maxOptions leaves room in a page for the label and other options.
const maxOptions = 3 << 10

// branchOptions gives as many branches to the first mount as there is room for.
func branchOptions(branches []string) (first string, rest []string) {
	var options strings.Builder
	options.WriteString("br:" + branches[0] + "=rw")
	for i, branch := range branches[1:] {
		if options.Len()+len(branch) > maxOptions {
			rest = branches[i+1:]
			break
		}
		options.WriteString(":" + branch + "=ro+wh")
	}
	options.WriteString(",dio,xino=/dev/shm/aufs.xino")
	return options.String(), rest
}
