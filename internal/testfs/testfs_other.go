//go:build !linux

package testfs

import "testing"

// Btrfs skips the test: there is no btrfs on this platform.
func Btrfs(t testing.TB, opts ...BtrfsOption) string {
	t.Helper()
	c := btrfsConfig{size: defaultSize, quota: quotaOff}
	for _, opt := range opts {
		opt(&c)
	}
	Skip(t, "needs btrfs, which this platform does not have")
	return ""
}

// ZFS skips the test: only OpenZFS on Linux is supported.
func ZFS(t testing.TB) (dataset, mountpoint string) {
	t.Helper()
	Skip(t, "needs OpenZFS on Linux")
	return "", ""
}

// Zpool skips the test: only OpenZFS on Linux is supported.
func Zpool(t testing.TB) string {
	t.Helper()
	Skip(t, "needs OpenZFS on Linux")
	return ""
}
