package testfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// unmountAll unmounts mnt, which the test is done with. Mounts below it and whatever keeps it busy are
// leaks of the test: they fail it, and are detached so that the machine is left clean all the same. It
// reports whether the filesystem is free of users.
func unmountAll(t testing.TB, mnt string) (free bool) {
	t.Helper()
	for _, m := range mountsUnder(t, mnt) {
		if m == mnt {
			continue
		}
		t.Errorf("testfs: the test left %s mounted", m)
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			t.Errorf("testfs: unmount %s: %v", m, err)
		}
	}

	var err error
	eventually(patience, func() bool {
		err = unix.Unmount(mnt, unix.UMOUNT_NOFOLLOW)
		return !errors.Is(err, unix.EBUSY)
	})
	if err == nil || errors.Is(err, unix.EINVAL) && len(mountsUnder(t, mnt)) == 0 {
		return true
	}
	t.Errorf("testfs: unmount %s: %v; held by %s", mnt, err, holders(mnt))
	if err := unix.Unmount(mnt, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		t.Errorf("testfs: detach %s: %v", mnt, err)
	}
	return false
}

// mountsUnder lists the mount points at and below dir in this mount namespace, the latest mount first.
func mountsUnder(t testing.TB, dir string) []string {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	var mounts []string
	for _, info := range infos {
		mounts = append(mounts, info.Mountpoint)
	}
	slices.Reverse(mounts)
	return mounts
}

// holders names the processes that have something under dir open, for the message of a failure.
func holders(dir string) string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, kind := range []string{"cwd", "root", "exe"} {
		more, _ := filepath.Glob("/proc/[0-9]*/" + kind)
		links = append(links, more...)
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err == nil && (target == dir || strings.HasPrefix(target, dir+"/")) {
			found = append(found, fmt.Sprintf("%s -> %s", link, target))
		}
	}
	if len(found) == 0 {
		return "no process that can be seen"
	}
	return strings.Join(found, ", ")
}
