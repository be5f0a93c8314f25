package rootuse

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// Mounts returns fault.ErrInUse if one of the named directories of the root is in use by a mount:
//
//   - It is mounted in any mount namespace, or a directory below it is.
//   - It is a layer of a mounted overlay.
//   - Another filesystem is mounted below it.
//
// Names that do not exist are ignored.
func Mounts(root *rootdir.Dir, names []string) error {
	dir, err := root.OpenDir(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	top, err := pathFromTop(dir)
	if err != nil {
		return fmt.Errorf("path of %s from the top of its filesystem: %w", root.Path(), err)
	}
	filesystem, err := mounttable.New(int(dir.Fd()))
	if err != nil {
		return err
	}
	own, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root.Path()))
	if err != nil {
		return err
	}
	for _, name := range names {
		for _, mount := range own {
			if strings.HasPrefix(mount.Mountpoint, root.Join(name)+"/") {
				return fault.New(fault.ErrInUse, "%s is mounted on %s: unmount it there", mount.Source, mount.Mountpoint)
			}
		}
		uses, err := filesystem.UsesOf(filepath.Join(top, name))
		if err != nil {
			return fmt.Errorf("mounts of %s: %w", root.Join(name), err)
		}
		if err := mounttable.InUse(root.Join(name), uses); err != nil {
			return err
		}
	}
	return nil
}

// pathFromTop is the path of an open directory from the top of its filesystem.
func pathFromTop(dir *os.File) (string, error) {
	var stat unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &stat); err != nil {
		return "", os.NewSyscallError("statx", err)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := uint64(m.ID) == stat.Mnt_id
		return !found, found
	})
	if err != nil {
		return "", err
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	if err != nil {
		return "", err
	}
	if len(mounts) == 0 {
		return "", fmt.Errorf("mount %d is not in this process's list", stat.Mnt_id)
	}
	below, err := filepath.Rel(mounts[0].Mountpoint, path)
	if err != nil {
		return "", err
	}
	return filepath.Join(mounts[0].Root, below), nil
}

// Locked returns fault.ErrInUse if a process holds a lock of fcntl(2) on the file, of either kind.
func Locked(file *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return fmt.Errorf("look for locks of %s: %w", file.Name(), os.NewSyscallError("fcntl", err))
	}
	if lock.Type == unix.F_UNLCK {
		return nil
	}
	if lock.Pid > 0 {
		return fault.New(fault.ErrInUse, "%s is locked by %s", file.Name(), mounttable.DescribeProcess(int(lock.Pid)))
	}
	return fault.New(fault.ErrInUse, "%s is locked", file.Name())
}

// maxCommandLine is the most bytes of a command line that are looked at.
const maxCommandLine = 1 << 20

// Process returns fault.ErrInUse if a process runs whose name, of at most 15 bytes, is that, and one of whose arguments
// matches.
func Process(name string, matches func(argument string) bool) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if err != nil || strings.TrimSuffix(string(comm), "\n") != name {
			continue // it has ended, or is another program
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		for argument := range bytes.SplitSeq(line[:min(len(line), maxCommandLine)], []byte{0}) {
			if matches(string(argument)) {
				return fault.New(fault.ErrInUse, "%s works on it (%s)", mounttable.DescribeProcess(pid), argument)
			}
		}
	}
	return nil
}
