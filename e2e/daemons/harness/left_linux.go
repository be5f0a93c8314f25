package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// leftTimeout is how long processes that have been told to end, and their resources, may take to go.
const leftTimeout = testfs.Patience

// checkLeft fails the test for each process, mount, loop device and cgroup that is left after the host's daemons have
// ended. It takes these away.
func (h *Host) checkLeft() {
	h.t.Helper()
	deadline := time.Now().Add(leftTimeout)
	for len(h.left()) > 0 && time.Now().Before(deadline) {
		time.Sleep(pollInterval)
	}
	for _, what := range h.left() {
		h.t.Errorf("harness: left behind: %s", what)
	}
	h.takeAway()
}

// left describes the remains of the host's daemons.
func (h *Host) left() []string {
	h.t.Helper()
	var all []string
	for _, p := range h.processes() {
		all = append(all, fmt.Sprintf("process %d: %s", p.pid, p.command))
	}
	for _, m := range h.mounts() {
		if !slices.Contains(h.ownMounts, m) {
			all = append(all, "mount on "+m)
		}
	}
	for _, l := range h.loops() {
		all = append(all, "loop device of "+l)
	}
	for _, dir := range h.cgroups() {
		if !parentCgroup(dir, h.Cgroup) {
			all = append(all, "cgroup "+dir)
		}
	}
	return all
}

// parentCgroup tells whether a cgroup contains those of containers: the host's own, and BuildKit's in it. Each is
// made by the first container that needs it, and nobody has to remove it.
func parentCgroup(dir, top string) bool {
	return filepath.Base(dir) == top || filepath.Base(dir) == "buildkit" && filepath.Base(filepath.Dir(dir)) == top
}

func (h *Host) takeAway() {
	h.t.Helper()
	for _, p := range h.processes() {
		if err := unix.Kill(p.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			h.t.Errorf("harness: kill %d: %v", p.pid, err)
		}
	}
	for _, m := range h.mounts() {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			h.t.Errorf("harness: unmount %s: %v", m, err)
		}
	}
	// Processes that were killed leave their cgroup when they are gone.
	deadline := time.Now().Add(leftTimeout)
	for {
		var err error
		for _, dir := range h.cgroups() {
			err = errors.Join(err, unix.Rmdir(dir))
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("harness: remove cgroups: %v", err)
			return
		}
		time.Sleep(pollInterval)
	}
}

// owns tells whether text, a path or a command line, names something below the host's directories.
func (h *Host) owns(text string) bool {
	return strings.Contains(text, h.Dir+"/") || strings.Contains(text, h.Data+"/")
}

type process struct {
	pid     int
	command string
}

// processes lists those that were given a path of the host or work in one, and those in its cgroups. A daemon
// that is still meant to run is not among them: it is stopped before they are listed.
func (h *Host) processes() []process {
	h.t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process may end at any time; if it is unreadable then, it is not left.
		dir := filepath.Join("/proc", e.Name())
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		command := strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		root, _ := os.Readlink(filepath.Join(dir, "root"))
		groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if h.owns(command+" ") || h.owns(cwd+"/") || h.owns(root+"/") || strings.Contains(string(groups), "/"+h.Cgroup+"/") {
			found = append(found, process{pid, command})
		}
	}
	return found
}

// mounts lists the mount points below the host's directories that are not the test's own, the latest first.
func (h *Host) mounts() []string {
	h.t.Helper()
	var found []string
	for _, dir := range []string{h.Dir, h.Data} {
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			h.t.Fatalf("harness: %v", err)
		}
		for _, info := range infos {
			if info.Mountpoint != h.Data && !slices.Contains(h.DataMounts, info.Mountpoint) {
				found = append(found, info.Mountpoint)
			}
		}
	}
	slices.Reverse(found)
	return found
}

// loops lists the files below the host's directories that loop devices are attached to.
func (h *Host) loops() []string {
	h.t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	var found []string
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err == nil && h.owns(string(backing)) {
			found = append(found, strings.TrimSpace(string(backing)))
		}
	}
	return found
}

// cgroups lists the host's cgroups in each hierarchy, children first.
func (h *Host) cgroups() []string {
	h.t.Helper()
	tops, err := filepath.Glob("/sys/fs/cgroup/*/" + h.Cgroup)
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	var found []string
	for _, top := range append(tops, "/sys/fs/cgroup/"+h.Cgroup) {
		err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && e.IsDir() {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			h.t.Fatalf("harness: %v", err)
		}
	}
	slices.Reverse(found)
	return found
}
