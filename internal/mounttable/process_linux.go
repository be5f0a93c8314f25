package mounttable

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// processes lists the ids of all processes that /proc shows.
func processes() []int {
	pids, _ := processesIn("/proc")
	return pids
}

func processesIn(proc string) (pids []int, err error) {
	names, err := namesIn(proc)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

func namesIn(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// DescribeProcess names a process for people.
func DescribeProcess(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}

// File identifies a file, or with Inode 0 all files of that device, as stat(2) does.
type File struct {
	Device uint64
	Inode  uint64
}

// Holders lists the processes that have a file open, run it, or have it as their root or working directory.
func Holders(file File) (pids []int) {
	for _, pid := range processes() {
		if HasOpen(pid, file) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// HasOpen reports whether a process has a file open, runs it, or has it as its root or working directory. Files that cannot be seen
// do not count.
func HasOpen(pid int, file File) bool {
	held, _ := file.isHeldIn(fmt.Sprintf("/proc/%d", pid))
	return held
}

// IsHeld reports whether any thread that /proc shows has a file open, runs it, or has it as its root or working directory.
// Returns an error if none is found, and not all could be looked at: that may need CAP_SYS_PTRACE.
func IsHeld(file File) (bool, error) { return file.isHeldBelow("/proc") }

// isHeldBelow looks at each thread, since the first may have ended before the others. Then the process seems to have no files.
func (f File) isHeldBelow(proc string) (bool, error) {
	pids, err := processesIn(proc)
	if err == nil && !slices.Contains(pids, 1) { // there is one; the mount option hidepid hides it
		err = fmt.Errorf("%s does not show all processes", proc)
	}
	for _, pid := range pids {
		tasks := fmt.Sprintf("%s/%d/task/", proc, pid)
		threads, threadsErr := namesIn(tasks)
		err = cmp.Or(err, unlessGone(threadsErr))
		for _, thread := range threads {
			held, heldErr := f.isHeldIn(tasks + thread)
			if held {
				return true, nil
			}
			err = cmp.Or(err, heldErr)
		}
	}
	return false, err
}

// isHeldIn looks at the directory of a process or thread in /proc. Returns an error if it could not look at everything.
func (f File) isHeldIn(dir string) (bool, error) {
	descriptors, err := namesIn(dir + "/fd")
	err = unlessGone(err)
	links := []string{"/cwd", "/root", "/exe"}
	for _, descriptor := range descriptors {
		links = append(links, "/fd/"+descriptor)
	}
	for _, link := range links {
		is, isErr := f.isAt(dir + link)
		if is {
			return true, nil
		}
		err = cmp.Or(err, unlessGone(isErr))
	}
	return false, err
}

// unlessGone leaves out the errors of a process that has ended, and of a link that leads to nothing.
func unlessGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// isAt reports whether a link of /proc leads to the file. It uses the kernel's memory and asks no server, so that a
// server which does not answer keeps nobody waiting.
func (f File) isAt(link string) (bool, error) {
	var stat unix.Statx_t
	flags := unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(unix.AT_FDCWD, link, flags, unix.STATX_INO, &stat); err != nil {
		// The device is known even of a file of FUSE that belongs to another user.
		if unix.Statx(unix.AT_FDCWD, link, flags, 0, &stat) == nil && !f.isOn(stat) {
			return false, nil
		}
		return false, &os.PathError{Op: "statx", Path: link, Err: err}
	}
	return f.isOn(stat) && (f.Inode == 0 || stat.Ino == f.Inode), nil
}

func (f File) isOn(stat unix.Statx_t) bool {
	return unix.Mkdev(stat.Dev_major, stat.Dev_minor) == f.Device
}
