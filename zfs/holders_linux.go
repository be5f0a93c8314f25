package zfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// busy turns the fact that a dataset or snapshot is busy into an errdefs.ErrFailedPrecondition that says who
// keeps it so.
func (b *Backend) busy(err error, dataset string) error {
	holders, scanErr := b.holders(dataset)
	switch {
	case scanErr != nil:
		return fmt.Errorf("%s is busy, and who uses it cannot be found: %w: %w: %w", dataset, scanErr, errdefs.ErrFailedPrecondition, err)
	case len(holders) == 0:
		return fmt.Errorf("%s is busy: %w: %w", dataset, errdefs.ErrFailedPrecondition, err)
	}
	return fmt.Errorf("%s is in use by %s: %w: %w", dataset, strings.Join(holders, ", "), errdefs.ErrFailedPrecondition, err)
}

// maxHolders is how many holders an error names.
const maxHolders = 10

// holders finds in /proc the mount namespaces that have a dataset, or a snapshot of it, mounted, each with one of
// its processes, and the processes that have something open in it.
func (b *Backend) holders(dataset string) ([]string, error) {
	// A dataset that was unmounted while in use is in no mount namespace. Mounted again, it is the same
	// filesystem, by whose device number those can be told who still use it.
	dir := filepath.Join(b.views, temporaryName("holders-"))
	device, err := b.deviceOf(dataset, dir)
	if err != nil {
		return nil, err
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	own := namespaceOf("self")
	seen := map[string]bool{own: true}
	var holders []string
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if device != 0 && hasOpen(pid, device) {
			holders = append(holders, describeProcess(pid))
		}
		namespace := namespaceOf(process.Name())
		if namespace == "" || seen[namespace] {
			continue
		}
		seen[namespace] = true
		if at := mountedIn(pid, dataset); at != "" {
			holders = append(holders, fmt.Sprintf("the mount namespace of %s, on %s", describeProcess(pid), at))
		}
	}
	if at := mountedIn(os.Getpid(), dataset); at != "" {
		holders = append(holders, "the mount on "+at)
	}
	if len(holders) > maxHolders {
		holders = append(holders[:maxHolders], fmt.Sprintf("and %d others", len(holders)-maxHolders))
	}
	return slices.Clip(holders), nil
}

// deviceOf is the device number of a mounted dataset, 0 if it cannot be mounted once more to be asked.
func (b *Backend) deviceOf(dataset, dir string) (device uint64, err error) {
	if err := b.mountAt(dataset, dir, 0, ""); err != nil {
		if err = b.mountAt(dataset, dir, unix.MS_RDONLY, ""); err != nil {
			return 0, unmountPoint(dir, true)
		}
	}
	var stat unix.Stat_t
	if err = unix.Stat(dir, &stat); err == nil {
		device = stat.Dev
	}
	return device, errors.Join(err, unmountPoint(dir, true))
}

func namespaceOf(process string) string {
	namespace, err := os.Readlink(filepath.Join("/proc", process, "ns/mnt"))
	if err != nil {
		return "" // it is gone, or a kernel thread
	}
	return namespace
}

// mountedIn returns where a process sees the dataset, or a snapshot of it, mounted, or "".
func mountedIn(pid int, dataset string) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return ""
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "zfs" || m.Source != dataset && !strings.HasPrefix(m.Source, dataset+"@"), false
	})
	if err != nil || len(mounts) == 0 {
		return ""
	}
	return mounts[0].Mountpoint
}

// hasOpen reports whether a process has a file on that device open, or is in one of its directories.
func hasOpen(pid int, device uint64) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	links := []string{dir + "/cwd", dir + "/root", dir + "/exe"}
	if descriptors, err := os.ReadDir(dir + "/fd"); err == nil {
		for _, d := range descriptors {
			links = append(links, dir+"/fd/"+d.Name())
		}
	}
	return slices.ContainsFunc(links, func(link string) bool {
		var stat unix.Stat_t
		return unix.Stat(link, &stat) == nil && stat.Dev == device
	})
}

func describeProcess(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}
