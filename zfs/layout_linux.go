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
	graphName   = "graph" // where datasets are mounted, as moby's driver does
	viewsName   = "views" // where snapshots are mounted
	locksName   = "locks"
	intentsName = "intents"
	runningName = "running"
	claimsName  = "claims"
)

// RunDir is where the mount points and locks are of what is opened for reading alone. They go when the machine stops.
const RunDir = "/run/cowshed/read-only"

// runHome is the directory below RunDir that stands for a home.
func runHome(home string) string {
	sum := sha256.Sum256([]byte(home))
	return filepath.Join(RunDir, hex.EncodeToString(sum[:8]))
}

// layout is where the backend keeps what is not in the pool: mount points, locks and intents.
type layout struct {
	home    string
	graph   string
	views   string
	locks   string
	intents string
}

// makeLayout makes the home and the directories below it where they are missing.
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

// mountPoints is the source of the filesystems in memory that hold the mount points.
const mountPoints = "cowshed-mount-points"

// keepPrivate mounts a filesystem in memory on graph and on views, privately. So what is mounted below is not mounted in
// other mount namespaces as well, where it would keep datasets busy, and mount points need no space.
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

// release undoes keepPrivate, unless something is mounted there still.
func (l layout) release() error {
	var errs []error
	for _, dir := range []string{l.graph, l.views} {
		mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
		if len(mounts) > 0 && mounts[0].Source == mountPoints { // and not what somebody else keeps there
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

// unmount is unmount(2), which a child that is being forked does not get in the way of: until it executes its program it
// has open what this process had.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		syscall.ForkLock.RLock()
		syscall.ForkLock.RUnlock() //nolint:staticcheck,gocritic // to wait for it is all that is wanted
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	}
	return err
}

// unmountPoint unmounts whatever is mounted on dir and removes the directory. What is busy is unmounted too if
// detach says so: it vanishes from here, and lives on until its last user is gone. Where other mount namespaces
// have a copy of the mount, the kernel unmounts that when the directory goes.
func unmountPoint(dir string, detach bool) error {
	for {
		err := unmount(dir)
		if detach && errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // no longer mounted
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
