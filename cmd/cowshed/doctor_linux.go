package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/mounttable"
)

func (d *doctor) privileges() {
	initial, err := detect.InitialUserNamespace()
	if err != nil {
		d.add(warn, "privileges", "", "%v", err)
		return
	}
	capable, err := detect.Capable(unix.CAP_SYS_ADMIN)
	switch {
	case err != nil:
		d.add(warn, "privileges", "", "%v", err)
	case !initial:
		d.add(fail, "privileges", "run it outside of the container or user namespace", "this process is in a nested user namespace")
	case !capable:
		d.add(fail, "privileges", "run it as root", "this process lacks CAP_SYS_ADMIN")
	default:
		d.add(ok, "privileges", "", "CAP_SYS_ADMIN in the initial user namespace")
	}
	if initial, err := detect.InitialPIDNamespace(); err != nil {
		d.add(warn, "processes", "", "%v", err)
	} else if !initial {
		d.add(warn, "processes", "run it in the PID namespace of the host, such as with docker run --pid=host",
			"this process is in a nested PID namespace: it does not see that processes outside of it have layers mounted")
	}
}

// lockHolders says which other processes use the store.
func (d *doctor) lockHolders() {
	var files []string
	for _, name := range graphdriver.Drivers() {
		files = append(files, homedir.LockFile(filepath.Join(d.app.root, name)))
	}
	for _, file := range append(files, filepath.Join(d.app.root, layerstore.ImagesDir, ".lock")) {
		holders, err := holdersOf(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.add(warn, "locks", "", "%v", err)
		}
		for _, holder := range holders {
			d.add(ok, "locks", "", "%s is held by %s", file, holder)
		}
	}
}

// holdersOf lists the processes that hold a lock on a file, as /proc/locks has them (proc(5)).
func holdersOf(file string) ([]string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(file, &stat); err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var holders []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 1: FLOCK  ADVISORY  READ 4242 00:2a:257 0 EOF, and with "->" after the number for a waiting process. The
		// device is that of the filesystem, which on btrfs differs from the device that stat returns.
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" || !strings.HasSuffix(fields[5], ":"+strconv.FormatUint(stat.Ino, 10)) {
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		if err != nil || pid <= 0 || pid == os.Getpid() || !hasOpen(pid, file) {
			continue
		}
		holders = append(holders, mounttable.DescribeProcess(pid))
	}
	return holders, lines.Err()
}

// hasOpen reports whether a process has a file of that name open. It looks at names alone, in whatever mount namespace
// they are: to look at the files could hang on a mount whose server is gone.
func hasOpen(pid int, file string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, entry := range entries {
		name, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err == nil && filepath.Base(name) == filepath.Base(file) {
			return true
		}
	}
	return false
}
