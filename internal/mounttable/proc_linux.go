package mounttable

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inProc is UsesOf by means of /proc. Mount namespaces without processes are not in there.
func (f *Filesystem) inProc(t target) (uses []Use, err error) {
	device := fmt.Appendf(nil, " %d:%d ", unix.Major(f.device), unix.Minor(f.device))
	overlays := []byte(" - overlay ")
	err = eachNamespace(func(n namespace, lines *bufio.Scanner) error {
		s := seen{namespace: n}
		for lines.Scan() {
			if f.device != 0 && !bytes.Contains(lines.Bytes(), device) && !bytes.Contains(lines.Bytes(), overlays) {
				continue // most are of something else, and are not worth being taken apart
			}
			line, ok := parseLine(lines.Bytes())
			if !ok {
				continue
			}
			if string(line.fsType) == "overlay" {
				o := &overlay{point: unescape(string(line.point)), device: line.device, layers: LayersOf(string(line.options))}
				o.setSource(unescape(string(line.source)))
				s.addOverlay(o)
			} else if f.is(line.device) {
				s.mounts = append(s.mounts, mount{root: unescape(string(line.root)), point: unescape(string(line.point))})
			}
		}
		uses = append(uses, s.usesOf(t)...)
		return lines.Err()
	})
	return uses, err
}

// UsesOfSource lists the mounts of a filesystem that has a source of its own, as ZFS datasets do, in all mount
// namespaces that have processes.
func UsesOfSource(fsType string, is func(source string) bool) (uses []Use, err error) {
	err = eachNamespace(func(n namespace, lines *bufio.Scanner) error {
		for lines.Scan() {
			line, ok := parseLine(lines.Bytes())
			if ok && string(line.fsType) == fsType && is(unescape(string(line.source))) {
				uses = append(uses, Use{Mountpoint: unescape(string(line.point)), namespace: n.inode})
			}
		}
		return lines.Err()
	})
	return uses, err
}

// eachNamespace calls visit with the mounts of each mount namespace, as they are in mountinfo (proc(5)).
func eachNamespace(visit func(n namespace, lines *bufio.Scanner) error) error {
	visited := map[uint64]bool{}
	chrooted := map[uint64]int{} // a process, for namespaces that none was found in that can see all of them
	for _, pid := range processes() {
		process := strconv.Itoa(pid)
		inode, err := namespaceOf(process, "mnt")
		if err != nil || visited[inode] { // it is gone, or a kernel thread
			continue
		}
		// Its mountinfo has the mounts below its root.
		if root, err := os.Readlink("/proc/" + process + "/root"); err != nil || root != "/" {
			chrooted[inode] = pid
			continue
		}
		mounts, err := os.Open("/proc/" + process + "/mountinfo")
		if err != nil {
			continue
		}
		if visited[inode], err = visitMounts(mounts, namespaceAt(process, inode), visit); err != nil {
			return fmt.Errorf("mounts of process %d: %w", pid, err)
		}
	}
	for inode, pid := range chrooted {
		if visited[inode] {
			continue
		}
		if err := visitFromWithin(pid, inode, visit); err != nil {
			return fmt.Errorf("mounts in the namespace of process %d: %w", pid, err)
		}
	}
	return nil
}

// namespaceAt describes the mount namespace with that inode number, which a process was found in. It counts as one of another
// user namespace if the process has left it since. So a list of mounts that was opened before is that of this mount namespace.
func namespaceAt(process string, inode uint64) namespace {
	return namespace{inode: inode, own: func() bool {
		file, err := os.Open("/proc/" + process + "/ns/mnt")
		if err != nil {
			return false
		}
		defer file.Close()
		now, err := inodeOf(int(file.Fd()))
		return err == nil && now == inode && isOwned(int(file.Fd()))
	}}
}

// visitMounts calls visit with the mounts in a file, and closes it. It reports whether they were all there: the file's
// process may have ended.
func visitMounts(file *os.File, n namespace, visit func(namespace, *bufio.Scanner) error) (bool, error) {
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	err := visit(n, lines)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	return err == nil, err
}

// visitFromWithin calls visit with the mounts of the namespace of a process whose own root hides some of them. It
// reads them as a thread that is in the namespace. If it may not enter, it takes the mounts that the process sees.
func visitFromWithin(pid int, inode uint64, visit func(namespace, *bufio.Scanner) error) error {
	result := make(chan error)
	go onOtherThread(func() {
		mounts, n, err := openFromWithin(pid)
		if err != nil {
			process := strconv.Itoa(pid)
			if mounts, err = os.Open("/proc/" + process + "/mountinfo"); err != nil {
				result <- nil // the process has ended
				return
			}
			n = namespaceAt(process, inode)
		}
		_, err = visitMounts(mounts, n, visit)
		result <- err
	})
	return <-result
}

// onOtherThread calls f on a thread that ends with it, and so not on the first of the process.
func onOtherThread(f func()) {
	runtime.LockOSThread() // and not unlocked: a thread ends with the goroutine that has it locked
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOtherThread(f)
	}()
	<-done
}

// openFromWithin moves this thread into the mount namespace of a process, and opens the list of all mounts in there.
func openFromWithin(pid int) (mounts *os.File, n namespace, err error) {
	proc, err := os.Open("/proc") // there may be none within
	if err != nil {
		return nil, n, err
	}
	defer proc.Close()
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, n, err
	}
	defer file.Close()
	if n.inode, err = inodeOf(int(file.Fd())); err != nil {
		return nil, n, err
	}
	isOwn := isOwned(int(file.Fd()))
	n.own = func() bool { return isOwn }
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, n, err
	}
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, n, err
	}
	fd, err := unix.Openat(int(proc.Fd()), "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, n, err
	}
	return os.NewFile(uintptr(fd), "mountinfo"), n, nil
}

// mountLine is a line of mountinfo. Its texts are escaped.
type mountLine struct {
	id                                   []byte
	device                               uint64
	root, point, fsType, source, options []byte
}

func parseLine(line []byte) (m mountLine, ok bool) {
	// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
	before, after, ok := bytes.Cut(line, []byte(" - "))
	if !ok {
		return m, false
	}
	fields := bytes.SplitN(before, []byte(" "), 6)
	more := bytes.SplitN(after, []byte(" "), 3)
	if len(fields) < 6 || len(more) < 3 {
		return m, false
	}
	major, minor, ok := bytes.Cut(fields[2], []byte(":"))
	if !ok {
		return m, false
	}
	a, err := strconv.ParseUint(string(major), 10, 32)
	if err != nil {
		return m, false
	}
	b, err := strconv.ParseUint(string(minor), 10, 32)
	if err != nil {
		return m, false
	}
	return mountLine{
		id: fields[0], device: unix.Mkdev(uint32(a), uint32(b)), root: fields[3], point: fields[4],
		fsType: more[0], source: more[1], options: more[2],
	}, true
}

// deviceOf is the device number of the filesystem of an open file, which on btrfs differs from the device that stat
// returns. It is 0 if this process does not see the file's mount.
func deviceOf(fd int) (uint64, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	id := ""
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id = strings.TrimSpace(value)
		}
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	defer mounts.Close()
	for lines := bufio.NewReader(mounts); ; {
		line, err := lines.ReadBytes('\n')
		if m, ok := parseLine(bytes.TrimSuffix(line, []byte("\n"))); ok && string(m.id) == id {
			return m.device, nil
		}
		if errors.Is(err, io.EOF) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
	}
}
