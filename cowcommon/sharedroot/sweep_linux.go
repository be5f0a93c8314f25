package sharedroot

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/namelock"
)

// Sweep unmounts the overlays of views that killed processes have left in a home. It comes before the Backend inside is
// opened, which cannot destroy the views below an overlay on ZFS.
func Sweep(home string, log *slog.Logger) {
	if !IsOn(home) {
		return
	}
	dir, err := filepath.Abs(home)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir) // as the kernel lists mount points
	}
	if err == nil {
		err = sweep(filepath.Join(dir, rootsName), homedir.LockFile(dir), func(m *mountinfo.Info) bool {
			return strings.HasPrefix(filepath.Base(m.Mountpoint), viewPrefix)
		})
	}
	if err != nil {
		log.Warn("shared roots: views that are no longer used cannot be unmounted, and stay", "home", home, "error", err)
	}
}

// sweep unmounts the overlays in a directory of mount points that no process uses, and for which may returns true. uses is
// the file whose bytes are the locks of mount points.
func sweep(roots, uses string, may func(m *mountinfo.Info) bool) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(roots))
	for _, m := range mounts {
		if m.Mountpoint == roots {
			continue
		}
		lock, ok, lockErr := namelock.TryExclusive(uses, mountKey(filepath.Base(m.Mountpoint)))
		if ok {
			if may(m) {
				lockErr = mountdir.Remove(m.Mountpoint, false)
			}
			lockErr = errors.Join(lockErr, lock.Unlock(nil))
		}
		err = errors.Join(err, lockErr)
	}
	return err
}
