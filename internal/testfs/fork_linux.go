package testfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Fork shares every file that this process has open in dir and below, until the end of the test. A forked child does
// the same until it executes its program. It returns the number of files.
func Fork(t testing.TB, dir string) (files int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	for _, entry := range entries {
		path, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
		if err != nil || path != dir && !strings.HasPrefix(path, dir+"/") {
			continue // closed meanwhile, or another's
		}
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			t.Fatalf("testfs: %v", err)
		}
		shared, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatalf("testfs: share %s: %v", path, err)
		}
		t.Cleanup(func() { unix.Close(shared) })
		files++
	}
	return files
}
