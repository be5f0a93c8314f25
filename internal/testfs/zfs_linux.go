package testfs

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/admintool"
)

// Zpool returns the name of the ZFS pool that COWSHED_TEST_ZPOOL names. A test that needs ZFS, but no dataset
// in that pool, calls it to be skipped where there is none.
func Zpool(t testing.TB) string {
	t.Helper()
	Root(t)
	pool := os.Getenv(ZpoolEnv)
	switch pool {
	case "":
		Skip(t, "needs a ZFS pool, named by %s", ZpoolEnv)
	case ZpoolElsewhere:
		t.Skip(ElsewhereReason)
	}
	return pool
}

// ZFS returns a fresh dataset, and the path where it is mounted, in the pool that COWSHED_TEST_ZPOOL names. When the
// test ends, the dataset is destroyed with everything in it, and the test fails if something of it was still mounted
// elsewhere. The test is skipped if the variable is unset or ZFS is missing. It is skipped too, required or not, if
// the variable is [ZpoolElsewhere].
func ZFS(t testing.TB) (dataset, mountpoint string) {
	t.Helper()
	pool := Zpool(t)
	zfs, err := admintool.Look("zfs")
	if err != nil {
		Skip(t, "needs the zfs command (package zfsutils-linux): %v", err)
	}

	dataset = pool + "/cowshed-test-" + strings.ToLower(rand.Text()[:12])
	mountpoint = filepath.Join(workDir(t), "zfs")
	if err := runZFS(zfs, "create", "-o", "mountpoint="+mountpoint, "-o", "com.sun:auto-snapshot=false", dataset); err != nil {
		t.Fatalf("testfs: create %s: %v", dataset, err)
	}
	t.Cleanup(func() {
		unmountDatasets(t, dataset, mountpoint)
		unmountBelow(t, mountpoint)
		var err error
		// Unmounts by other processes of the test may still be under way in the kernel.
		if !eventually(patience, func() bool {
			err = runZFS(zfs, "destroy", "-R", "-f", dataset)
			return err == nil
		}) {
			t.Errorf("testfs: destroy %s: %v", dataset, err)
		}
	})
	return dataset, mountpoint
}

// OwnZpool makes a pool of poolSize bytes in a file in memory, where at most room bytes of it can be stored. It returns the
// pool's name, and the directory of the file, from which zpool imports it again. The pool mounts nothing by itself. When the
// test ends, the pool is destroyed. The test is skipped as by [Zpool].
func OwnZpool(t testing.TB, poolSize, room int64) (pool, dir string) {
	t.Helper()
	Zpool(t)
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.FormatInt(room, 10)); err != nil {
		t.Fatalf("testfs: mount %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("testfs: unmount %s: %v", dir, err)
		}
	})
	image := filepath.Join(dir, "pool")
	err := os.WriteFile(image, nil, 0o600)
	if err := errors.Join(err, os.Truncate(image, poolSize)); err != nil {
		t.Fatalf("testfs: %v", err)
	}
	pool = "cowshed" + strings.ToLower(rand.Text()[:12])
	if err := runZFS("zpool", "create", "-f", "-o", "cachefile=none", "-O", "compression=off", "-m", "none", pool, image); err != nil {
		t.Fatalf("testfs: %v", err)
	}
	t.Cleanup(func() {
		// The kernel may still be about to forget the last dataset that was open.
		var err error
		if !eventually(patience, func() bool { err = runZFS("zpool", "destroy", "-f", pool); return err == nil }) {
			t.Errorf("testfs: %v", err)
		}
	})
	return pool, dir
}

// Bound is the bound of the space of a dataset of [SmallZFS].
type Bound uint8

const (
	// ByPool says that the pool has no more.
	ByPool Bound = iota
	// ByQuota says that the dataset has a quota, and that the pool has more.
	ByQuota
)

// Bounds are the bounds by name, for tests that fill a dataset. In a short run they are quotas alone.
func Bounds() map[string]Bound {
	bounds := map[string]Bound{"quota": ByQuota}
	if Long() {
		bounds["pool"] = ByPool
	}
	return bounds
}

// SmallZFS is [ZFS] with so many bytes of space. [Fill] fills it.
func SmallZFS(t testing.TB, size int64, by Bound) (dataset, mountpoint string) {
	t.Helper()
	var err error
	if by == ByQuota {
		dataset, mountpoint = ZFS(t)
		err = runZFS("zfs", "set", "quota="+strconv.FormatInt(size, 10), dataset)
	} else {
		pool, _ := OwnZpool(t, size, 2*size)
		dataset, mountpoint = pool+"/root", filepath.Join(t.TempDir(), "zfs")
		err = runZFS("zfs", "create", "-o", "mountpoint="+mountpoint, dataset)
		t.Cleanup(func() {
			unmountDatasets(t, dataset, mountpoint)
			unmountBelow(t, mountpoint)
		})
	}
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	return dataset, mountpoint
}

// unmountDatasets unmounts datasets and snapshots below dataset that the test left mounted. Mounts below mountpoint
// are ZFS's own doing; others are leaks and fail the test.
func unmountDatasets(t testing.TB, dataset, mountpoint string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		below := strings.HasPrefix(info.Source, dataset+"/") || strings.HasPrefix(info.Source, dataset+"@")
		return info.FSType != "zfs" || !below, false
	})
	if err != nil {
		t.Errorf("testfs: %v", err)
		return
	}
	for _, info := range slices.Backward(infos) { // a dataset inside another is listed after it
		if !strings.HasPrefix(info.Mountpoint, mountpoint+"/") {
			t.Errorf("testfs: the test left %s mounted on %s", info.Source, info.Mountpoint)
		}
		if err := unix.Unmount(info.Mountpoint, unix.MNT_DETACH); err != nil {
			t.Errorf("testfs: unmount %s: %v", info.Mountpoint, err)
		}
	}
}

// unmountBelow unmounts mounts below mountpoint that are no datasets. Such are mounts that a backend leaves if a
// process that lives on has a volume busy.
func unmountBelow(t testing.TB, mountpoint string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(info.Mountpoint, mountpoint+"/"), false
	})
	if err != nil {
		t.Errorf("testfs: %v", err)
		return
	}
	for _, info := range infos {
		t.Logf("testfs: %s is still mounted on %s", info.FSType, info.Mountpoint)
		// A mount inside another goes with that one, which is listed before it.
		if err := unix.Unmount(info.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("testfs: unmount %s: %v", info.Mountpoint, err)
		}
	}
}

// zfsError is a failed zfs command with its output.
type zfsError struct {
	args   []string
	output string
	err    error
}

func (e *zfsError) Error() string {
	return strings.Join(e.args, " ") + ": " + e.err.Error() + ": " + e.output
}

func (e *zfsError) Unwrap() error { return e.err }

// runZFS runs a command of ZFS.
func runZFS(command string, args ...string) error {
	out, err := exec.Command(command, args...).CombinedOutput()
	if err != nil {
		return &zfsError{args: append([]string{command}, args...), output: string(bytes.TrimSpace(out)), err: err}
	}
	return nil
}
