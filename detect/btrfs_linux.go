package detect

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// Btrfs reports whether the btrfs driver can work at path, which need not exist yet: nil, or an error of the
// kinds that the package describes.
func Btrfs(path string) error {
	f, err := Probe(path)
	if err != nil {
		return err
	}
	if f.Magic != magicBtrfs {
		return fmt.Errorf("%w: %s is on %s, not on btrfs: choose a directory on btrfs, or make a store in a file with \"cowshed init --loop SIZE\"%s",
			graphdriver.ErrPrerequisites, path, f, missingFilesystem("btrfs"))
	}
	if f.ReadOnly {
		return readOnlyBtrfs(f)
	}
	return btrfsUsable(f)
}

// btrfsUsable tries the operations that the driver needs on the filesystem.
func btrfsUsable(f Filesystem) error {
	dir, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", graphdriver.ErrIncompatibleFS, err)
	}
	if err != nil {
		return fmt.Errorf("detect: %w", err)
	}
	defer dir.Close()

	subvolume, err := btrfsctl.Info(int(dir.Fd()))
	if errors.Is(err, unix.ENOTTY) {
		original, err := btrfsctl.StandsFor(f.Path)
		if err != nil {
			original = "that cannot be found (" + err.Error() + ")"
		}
		return fmt.Errorf("%w: %s is the empty directory that a snapshot has in the place of subvolume %s: use that one, or choose another directory",
			graphdriver.ErrIncompatibleFS, f.Path, original)
	}
	if err != nil {
		return fmt.Errorf("detect: subvolume of %s: %w", f.Path, err)
	}
	if subvolume.ReadOnly {
		return &ReadOnlyError{
			What: f.Path, Cause: "it is in a read-only subvolume",
			Advice: "choose another directory, or make it writable with \"btrfs property set -ts SUBVOLUME ro false\"",
		}
	}

	// Searching a tree takes the privilege that destroying subvolumes, limits and sending take.
	_, err = btrfsctl.SubvolumeExists(int(dir.Fd()), btrfsctl.FSTreeObjectID)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: the kernel refuses to let this process manage subvolumes of %s: %s", graphdriver.ErrIncompatibleFS, f, whyRefused())
	}
	if err != nil {
		return fmt.Errorf("detect: search the subvolumes of %s: %w", f.Path, err)
	}
	return nil
}

// whyRefused says why the kernel has refused an operation that takes CAP_SYS_ADMIN.
func whyRefused() string {
	why, err := whyUnprivileged()
	switch {
	case err != nil:
		return err.Error()
	case why == "":
		return "a security module or seccomp filter is in the way"
	default:
		return why
	}
}

// missingFilesystem says what to do if the kernel does not know a filesystem, in words to end a sentence
// with, or "".
func missingFilesystem(name string) string {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || knowsFilesystem(known, name) {
		return ""
	}
	return fmt.Sprintf(" (the kernel does not know %s at this time: \"modprobe %s\" loads it, if this kernel has it)", name, name)
}

// knowsFilesystem reports whether /proc/filesystems lists name: each line is the name of a filesystem,
// after a tab, and before that "nodev" if it needs no block device.
func knowsFilesystem(procFilesystems []byte, name string) bool {
	for line := range bytes.Lines(procFilesystems) {
		if fields := bytes.Fields(line); len(fields) > 0 && string(fields[len(fields)-1]) == name {
			return true
		}
	}
	return false
}
