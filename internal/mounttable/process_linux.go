package mounttable

import (
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// processes yields the ids of all processes that /proc shows.
func processes() iter.Seq[int] {
	return func(yield func(int) bool) {
		dir, err := os.Open("/proc")
		if err != nil {
			return
		}
		defer dir.Close()
		names, err := dir.Readdirnames(-1)
		if err != nil {
			return
		}
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil && !yield(pid) {
				return
			}
		}
	}
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
	for pid := range processes() {
		if HasOpen(pid, file) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// HasOpen reports whether a process has a file open, runs it, or has it as its root or working directory.
func HasOpen(pid int, file File) bool {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, link := range []string{"cwd", "root", "exe"} {
		if file.isAt(dir + link) {
			return true
		}
	}
	descriptors, err := os.Open(dir + "fd")
	if err != nil {
		return false
	}
	defer descriptors.Close()
	names, _ := descriptors.Readdirnames(-1)
	for _, name := range names {
		if file.isAt(dir + "fd/" + name) {
			return true
		}
	}
	return false
}

// isAt reports whether a link of /proc leads to the file. It uses the kernel's memory and asks no server, so that a
// server which does not answer keeps nobody waiting.
func (f File) isAt(link string) bool {
	var stat unix.Statx_t
	flags := unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(unix.AT_FDCWD, link, flags, unix.STATX_INO, &stat); err != nil {
		return false
	}
	return unix.Mkdev(stat.Dev_major, stat.Dev_minor) == f.Device && (f.Inode == 0 || stat.Ino == f.Inode)
}
