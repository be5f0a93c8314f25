package detect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// readOnlyBtrfs says why a btrfs is read-only, as far as that can be seen.
func readOnlyBtrfs(f Filesystem) *ReadOnlyError {
	const after = "it stays so until it is unmounted: remove the cause, stop the programs that use it, " +
		"then unmount %s and mount it again"
	e := &ReadOnlyError{What: f.String()}
	switch line, err := kernelComplaint("btrfs", f.Source); {
	case line != "":
		e.Cause = fmt.Sprintf("the kernel made it so after an error (%q)", line)
		e.Advice = fmt.Sprintf(after, f.Mountpoint)
	case f.forcedReadOnly:
		e.Cause = "it became so while it was mounted read-write, as the kernel does after an error (see dmesg)"
		if err != nil {
			e.Cause += fmt.Sprintf(", whose log cannot be read: %v", err)
		}
		e.Advice = fmt.Sprintf(after, f.Mountpoint)
	default:
		e.Cause = "it is mounted read-only"
		e.Advice = fmt.Sprintf("if that is not on purpose, run \"mount -o remount,rw %s\"", f.Mountpoint)
	}
	return e
}

// kernelComplaint finds in the kernel's log why a filesystem on that device became read-only after it was mounted. It
// returns "" if the log does not have the reason.
func kernelComplaint(fsType, device string) (string, error) {
	lines, err := kernelLog()
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(device); err == nil {
		device = real
	}
	return complaintIn(lines, fsType, filepath.Base(device)), nil
}

// complaintIn looks through lines such as
//
//	BTRFS info (device loop1): first mount of filesystem 22130f08-9ff1-467e-9d5b-46768198dd28
//	BTRFS error (device loop1 state A): Transaction aborted (error -5)
//	BTRFS info (device loop1 state EA): forced readonly
//
// and returns the first complaint of the last mount. It is a hint for people: no decision hangs on it.
func complaintIn(lines []string, fsType, device string) string {
	complaint, forced := "", false
	for _, line := range lines {
		prefix, message, ok := strings.Cut(line, "): ")
		if !ok && strings.Contains(line, ") in ") { // "BTRFS: error (device loop1 state A) in FUNCTION: errno=-5 …"
			prefix, message, ok = strings.Cut(line, ") in ")
		}
		_, place, found := strings.Cut(prefix, "(device ")
		if !ok || !found || !strings.HasPrefix(strings.ToLower(line), fsType) {
			continue
		}
		name, state, _ := strings.Cut(place, " state ")
		if name != device {
			continue
		}
		if strings.ContainsAny(state, "AE") { // aborted, error: the kernel leaves out lines where there are many
			forced = true
		}
		switch {
		case strings.Contains(message, "mount of filesystem"):
			complaint, forced = "", false
		case strings.Contains(message, "forced readonly"):
			forced = true
		case complaint == "" && strings.Contains(line, "error"):
			complaint = line
		}
	}
	if !forced {
		return ""
	}
	return complaint
}

// kernelLog returns the messages that the kernel's log has at this time, oldest first.
func kernelLog() ([]string, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/kmsg", Err: err}
	}
	defer unix.Close(fd)
	var lines []string
	for record := make([]byte, 8192); ; {
		n, err := unix.Read(fd, record) // one message each
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR): // overwritten meanwhile: the next one is read
		case errors.Is(err, unix.EAGAIN):
			return lines, nil
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: "/dev/kmsg", Err: err}
		default:
			// "6,339,5140900,-;message" and lines about the device after that (Documentation/ABI/testing/dev-kmsg).
			first, _, _ := strings.Cut(string(record[:n]), "\n")
			if _, message, ok := strings.Cut(first, ";"); ok {
				lines = append(lines, message)
			}
		}
	}
}

// hasOption reports whether one of the options, separated by commas, is that one.
func hasOption(options, option string) bool {
	return slices.Contains(strings.Split(options, ","), option)
}

// BtrfsDeviceErrors lists the devices of the btrfs of path for which the kernel has counted errors, with the counts.
// The list is empty on kernels before 5.14, which do not show the counts.
func BtrfsDeviceErrors(path string) ([]string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	uuid, err := btrfsctl.FilesystemUUID(int(dir.Fd()))
	if err != nil {
		return nil, fmt.Errorf("filesystem UUID: %w", err)
	}
	files, err := filepath.Glob("/sys/fs/btrfs/" + uuid.String() + "/devinfo/*/error_stats")
	if err != nil {
		return nil, err
	}
	var devices []string
	for _, file := range files {
		stats, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if counted := countedErrors(string(stats)); counted != "" {
			devices = append(devices, "device "+filepath.Base(filepath.Dir(file))+" has had errors: "+counted)
		}
	}
	return devices, nil
}

// countedErrors reads lines such as "write_errs 3" and lists those that are not 0.
func countedErrors(stats string) string {
	var counted []string
	for line := range strings.Lines(stats) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[1] != "0" {
			counted = append(counted, fields[0]+" "+fields[1])
		}
	}
	return strings.Join(counted, ", ")
}
