package testfs

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// KernelBefore reports whether the running kernel is older than a version.
func KernelBefore(t testing.TB, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatalf("testfs: uname: %v", err)
	}
	var is, isMinor int
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &is, &isMinor); err != nil {
		t.Fatalf("testfs: kernel release %q: %v", release, err)
	}
	return is < major || is == major && isMinor < minor
}
