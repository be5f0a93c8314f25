// Package testfs gives tests real filesystems: a fresh loopback btrfs or a fresh ZFS dataset, which lives as long as
// one test. It can assert that the test left nothing behind.
//
// A missing requirement (root, mkfs.btrfs, a pool) skips the test, so that tests run on a laptop. With
// COWSHED_TEST_REQUIRE=1 it fails the test instead: under `make test` and in CI no test may be skipped silently. The
// environment variables read are:
//
//	COWSHED_TEST_REQUIRE  1: a reason to skip a test fails it
//	COWSHED_TEST_DIR      where images and mount points are made; default is the test's own t.TempDir
//	COWSHED_TEST_LONG     set: the long variants of tests run; see [Long]
//	COWSHED_TEST_ZPOOL    name of the ZFS pool that [ZFS] makes datasets in, or [ZpoolElsewhere]
//
// All functions may be used by parallel tests, except [CheckLeaks].
package testfs

import (
	"os"
	"testing"
	"time"
)

// Patience is how long a test waits for something that must happen. It is no measure of speed: a machine with other work may need
// most of it.
const Patience = 2 * time.Minute

// RequireEnv is the environment variable that turns skips into failures when it is "1".
const RequireEnv = "COWSHED_TEST_REQUIRE"

// DirEnv is the environment variable that says where images and mount points are made.
const DirEnv = "COWSHED_TEST_DIR"

// ZpoolEnv is the environment variable that names the ZFS pool for tests.
const ZpoolEnv = "COWSHED_TEST_ZPOOL"

// ZpoolElsewhere is the value of COWSHED_TEST_ZPOOL with which `make test` says that tests that need ZFS run in the
// test machine. Such a test is skipped with [ElsewhereReason], which the check on skipped tests knows.
const ZpoolElsewhere = "elsewhere"

// ElsewhereReason is the message of a test that is skipped because it runs in the ZFS test machine.
const ElsewhereReason = "runs in the ZFS test machine (make test-zfs)"

// defaultSize is the apparent size of an image, in bytes. Images are sparse: only written data is stored.
const defaultSize = 2 << 30

// Skip skips the test for the given reason, or fails it when COWSHED_TEST_REQUIRE=1. It is the only way in
// which a test of this project may skip.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(RequireEnv) == "1" {
		t.Fatalf(RequireEnv+"=1, but this test would be skipped: "+format, args...)
	}
	t.Skipf(format, args...)
}

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root")
	}
}

// BtrfsOption changes how [Btrfs] makes its filesystem.
type BtrfsOption func(*btrfsConfig)

type quotaMode uint8

const (
	quotaOff quotaMode = iota
	quotaSimple
	quotaClassic
)

type btrfsConfig struct {
	size  int64 // bytes
	quota quotaMode
}

func newBtrfsConfig(opts []BtrfsOption) btrfsConfig {
	c := btrfsConfig{size: defaultSize, quota: quotaOff}
	for _, opt := range opts {
		opt(&c)
	}
	return c
}

// WithSize sets the size of the filesystem in bytes, 2 GiB by default. mkfs.btrfs refuses less than about
// 110 MiB. The image is sparse.
func WithSize(bytes int64) BtrfsOption { return func(c *btrfsConfig) { c.size = bytes } }

// WithSimpleQuota turns simple quotas on (Linux 6.7 or later; the test is skipped on an earlier one).
func WithSimpleQuota() BtrfsOption { return func(c *btrfsConfig) { c.quota = quotaSimple } }

// WithClassicQuota turns classic qgroups on and waits for the first rescan to end.
func WithClassicQuota() BtrfsOption { return func(c *btrfsConfig) { c.quota = quotaClassic } }
