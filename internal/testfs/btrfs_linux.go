package testfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/admintool"
)

// Btrfs returns the mount point of a fresh btrfs on a loop device, mounted noatime and private for this test
// alone. When the test ends, it is unmounted, detached and deleted, and the test fails if something still
// held it. The test is skipped where there is no root, mkfs.btrfs, loop device or btrfs.
func Btrfs(t testing.TB, opts ...BtrfsOption) string {
	t.Helper()
	c := newBtrfsConfig(opts)
	Root(t)
	dir := workDir(t)
	image := filepath.Join(dir, "btrfs.img")
	mnt := filepath.Join(dir, "btrfs")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatalf("testfs: %v", err)
	}
	if err := makeSparse(image, c.size); err != nil {
		t.Fatalf("testfs: make image: %v", err)
	}
	makeBtrfs(t, image, c)
	mountLoop(t, image, mnt)
	turnQuotaOn(t, mnt, c)
	return mnt
}

// maxTries is how often mkfs.btrfs may fail.
const maxTries = 20

// makeBtrfs makes a filesystem of the size of c on a file or device, which may be larger.
func makeBtrfs(t testing.TB, image string, c btrfsConfig) {
	t.Helper()
	mkfs, err := admintool.Look("mkfs.btrfs")
	if err != nil {
		Skip(t, "needs mkfs.btrfs (package btrfs-progs): %v", err)
	}
	size := strconv.FormatInt(c.size, 10)
	var out []byte
	tries := 0
	made := eventually(Patience, func() bool {
		// It looks whether the image is mounted by asking each loop device, and fails if one is detached meanwhile.
		out, err = exec.Command(mkfs, "-q", "-f", "-b", size, image).CombinedOutput()
		tries++
		return err == nil || tries == maxTries
	}) && err == nil
	if !made {
		t.Fatalf("testfs: %s %s: %v: %s", mkfs, image, err, out)
	}
}

// turnQuotaOn turns on the quota mode of c.
func turnQuotaOn(t testing.TB, mnt string, c btrfsConfig) {
	t.Helper()
	err := enableQuota(mnt, c.quota)
	if errors.Is(err, errNoSimpleQuota) {
		Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
}

// mountLoop mounts the image on mnt until the test ends or unmount is called.
func mountLoop(t testing.TB, image, mnt string) (unmount func()) {
	t.Helper()
	loop := attachLoop(t, image)
	// The device detaches itself when its last user is gone. From here on that is the mount.
	defer loop.Close()

	if err := unix.Mount(loop.Name(), mnt, "btrfs", unix.MS_NOATIME, ""); err != nil {
		if errors.Is(err, unix.ENODEV) {
			Skip(t, "needs a kernel with btrfs")
		}
		t.Fatalf("testfs: mount %s on %s: %v", loop.Name(), mnt, err)
	}
	unmount = sync.OnceFunc(func() {
		if unmountAll(t, mnt) {
			waitDetached(t, loop.Name(), image)
		}
	})
	t.Cleanup(unmount)
	if err := unix.Mount("", mnt, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("testfs: make %s private: %v", mnt, err)
	}
	return unmount
}

func makeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// workDir makes a directory for the test under COWSHED_TEST_DIR, or takes the test's own.
func workDir(t testing.TB) string {
	t.Helper()
	base := os.Getenv(DirEnv)
	if base == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(base, "cowshed-test-")
	if err != nil {
		t.Fatalf("testfs: %s: %v", DirEnv, err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("testfs: %v", err)
		}
	})
	return dir
}
