package btrfs

import (
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountedElsewhere reports whether the subvolume open as dir, or a directory of it, is mounted anywhere in
// this mount namespace: by a bind mount, or by its own mount of the filesystem.
func mountedElsewhere(dir *subvolume) (bool, error) {
	var own unix.Stat_t
	if err := unix.Fstat(dir.fd(), &own); err != nil {
		return false, err
	}
	// Every subvolume has a device number of its own, which a stat of the mount point shows.
	mounts, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		if info.FSType != "btrfs" || !strings.HasPrefix(info.Mountpoint, "/") {
			return true, false
		}
		var stat unix.Stat_t
		if err := unix.Stat(info.Mountpoint, &stat); err != nil || stat.Dev != own.Dev {
			return true, false
		}
		return false, true
	})
	return len(mounts) > 0, err
}
