package zfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/homedir"
)

// Names below the home. docs/reference/on-disk-format.md specifies them.
const (
	graphName   = "graph" // datasets are mounted here, as by moby's driver
	viewsName   = "views" // snapshots are mounted here
	locksName   = "locks"
	intentsName = "intents"
	claimsName  = "claims"
)

// RunDir has the mount points and locks of homes that are opened for reading alone. They go when the machine stops.
const RunDir = "/run/cowshed/read-only"

// runHome is the directory below RunDir that stands for a home.
func runHome(home string) string {
	sum := sha256.Sum256([]byte(home))
	return filepath.Join(RunDir, hex.EncodeToString(sum[:8]))
}

// layout has the paths of the home: mount points, locks and intents.
type layout struct {
	home    string
	graph   string
	views   string
	locks   string
	intents string
}

// makeLayout makes the home and the directories in it, where they are missing.
func makeLayout(home string, gid int) (layout, error) {
	l := layout{
		home:    home,
		graph:   filepath.Join(home, graphName),
		views:   filepath.Join(home, viewsName),
		locks:   filepath.Join(home, locksName),
		intents: filepath.Join(home, intentsName),
	}
	if err := homedir.MakeAbove(home); err != nil {
		return layout{}, err
	}
	for _, dir := range []string{l.home, l.graph, l.views, l.locks, l.intents} {
		if err := homedir.Make(dir, gid); err != nil {
			return layout{}, err
		}
	}
	return l, nil
}

// mountPoints is the source of the filesystems in memory that have the mount points.
const mountPoints = "cowshed-mount-points"

// keepPrivate mounts a private filesystem in memory on graph and on views. So mounts below do not appear in other mount
// namespaces, where they would keep datasets busy, and mount points need no space.
func (l layout) keepPrivate(gid int) error {
	for _, dir := range []string{l.graph, l.views} {
		mounted, err := mountinfo.Mounted(dir)
		if err != nil {
			return err
		}
		if mounted {
			continue
		}
		data := fmt.Sprintf("mode=0710,uid=%d,gid=%d", os.Getuid(), gid)
		if err := unix.Mount(mountPoints, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
			return &os.PathError{Op: "mount tmpfs", Path: dir, Err: err}
		}
		if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
			return &os.PathError{Op: "make private", Path: dir, Err: err}
		}
	}
	return nil
}

// release undoes keepPrivate, unless something is still mounted there.
func (l layout) release() error {
	var errs []error
	for _, dir := range []string{l.graph, l.views} {
		mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
		if len(mounts) > 0 && mounts[0].Source == mountPoints { // else the mount is somebody else's
			if err = unmount(dir); errors.Is(err, unix.EBUSY) {
				err = nil
			}
		}
		if err != nil {
			errs = append(errs, &os.PathError{Op: "unmount", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

// unmount is unmount(2). It also succeeds while a child is being forked: until the child executes its program, it has
// the files of this process open.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		syscall.ForkLock.RLock()
		syscall.ForkLock.RUnlock() //nolint:staticcheck,gocritic // only waits for the lock
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	}
	return err
}

// unmountPoint unmounts all mounts on dir and removes the directory. With detach it unmounts busy mounts too. They
// vanish from here, and live on until their last user is gone. If other mount namespaces have a copy of a mount, the
// kernel unmounts the copy when the directory goes.
func unmountPoint(dir string, detach bool) error {
	for {
		err := unmount(dir)
		if detach && errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing is mounted on dir
			break
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mount point: %w", err)
	}
	return nil
}
