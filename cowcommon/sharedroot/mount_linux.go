package sharedroot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/bindmount"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/overlaysource"
	"github.com/cowshed/cowshed/internal/sharedmark"
)

// mounted is a mounted volume.
type mounted struct {
	dir   string        // the root of its tree
	lower string        // "" if the volume is of style snapshot; else:
	lock  namelock.Lock // of mountKey
	bound bool          // the overlay is that of others
}

// upperOf and workOf are directories in the tree of a shared volume.
func upperOf(dir string) string { return filepath.Join(dir, sharedmark.Dir, upperName) }
func workOf(dir string) string  { return filepath.Join(dir, sharedmark.Dir, workName) }

// workIn is workOf for the tree of a volume that can be written to, and "" for that of a sealed volume. It makes the directory if
// that is missing: after a power cut the upper may be there without it, if only a file in the upper was synced.
func workIn(dir string) (string, error) {
	err := unix.Access(upperOf(dir), unix.W_OK)
	if errors.Is(err, unix.EROFS) {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "access", Path: upperOf(dir), Err: err}
	}
	if err := os.Mkdir(workOf(dir), dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return workOf(dir), nil
}

// point is where the overlay of a volume is mounted.
func (b *Backend) point(name string) string { return filepath.Join(b.roots, name) }

// Mount mounts a volume, and an overlay if its root is shared.
func (b *Backend) Mount(ctx context.Context, name, label string) (string, error) {
	m, err := b.mounts.Acquire(ctx, name, inuse.Held, func() (m *mounted, err error) {
		err = b.untilFolded(ctx, name, func() (err error) {
			m, err = b.mount(ctx, name, label)
			return err
		})
		return m, err
	})
	if err != nil {
		return "", fault.Wrap("mount volume", name, err)
	}
	return m.dir, nil
}

func (b *Backend) mount(ctx context.Context, name, label string) (_ *mounted, err error) {
	unlock, err := b.lock(ctx, shared(name))
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir, err := b.Backend.Mount(ctx, name, label)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Backend.Unmount(b.ctx, name))
		}
	}()
	if err := b.tryRestoreLimit(ctx, name); err != nil { // after a crash
		return nil, err
	}
	s, lower, err := b.inspectDir(name, dir)
	switch {
	case err != nil:
		return nil, err
	case s == stateFolding:
		return nil, errFolding
	case s == stateNone:
		return &mounted{dir: dir}, nil
	}
	return b.mountShared(ctx, name, dir, lower, label)
}

func (b *Backend) mountShared(ctx context.Context, name, dir, lower, label string) (_ *mounted, err error) {
	if err := b.makeRoots(); err != nil {
		return nil, err
	}
	m := &mounted{dir: b.point(name), lower: lower}
	lowerDir, err := b.Backend.Mount(ctx, lower, label)
	if err != nil {
		return nil, fmt.Errorf("lower: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Backend.Unmount(b.ctx, lower))
		}
	}()
	lock, alone, err := namelock.Either(ctx, b.uses, mountKey(name))
	if err != nil {
		return nil, err
	}
	m.lock = lock
	isMounted, err := isOverlay(m.dir) // by another process, or one before a crash
	if err == nil && !isMounted {
		if alone {
			err = b.mountFirst(m, name, dir, lowerDir, label)
		} else {
			err = inuse.ByAnotherProcess(name)
		}
	}
	if err == nil && alone {
		err = m.lock.Share()
	}
	if err != nil {
		return nil, errors.Join(err, m.lock.Unlock(nil))
	}
	return m, nil
}

// mountFirst mounts the overlay of a volume on m.dir. If others have mounted it by its MountSpec, as for a container that runs,
// theirs is bound there: there may be only one.
func (b *Backend) mountFirst(m *mounted, name, dir, lowerDir, label string) error {
	work := ""
	if !b.opts.ReadOnly {
		var err error
		if work, err = workIn(dir); err == nil && work != "" {
			err = b.checkNotMounted(dir, name)
		}
		if errors.Is(err, fault.ErrInUse) {
			m.bound, err = b.bindOther(m.dir, name, dir, lowerDir, err)
		}
		if m.bound || err != nil {
			return err
		}
	}
	return b.mountOverlay(m.dir, lowerDir, dir, work, label)
}

// bindOther binds the overlay of a volume on a new directory, if a MountSpec of it is mounted and writable in this mount namespace.
// Otherwise it returns inUse.
func (b *Backend) bindOther(point, name, tree, lowerDir string, inUse error) (bound bool, err error) {
	source := b.sourceOf(lowerDir, tree, name)
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		is := m.FSType == "overlay" && m.Root == "/" && m.Source == source && isWritable(m) && isOverlayOf(m, lowerDir, tree)
		return !is, false
	})
	if err != nil || len(mounts) == 0 {
		return false, cmp.Or(err, inUse)
	}
	var upper unix.Stat_t
	if err := unix.Stat(upperOf(tree), &upper); err != nil {
		return false, &fs.PathError{Op: "stat", Path: upperOf(tree), Err: err}
	}
	err = inUse
	for _, m := range mounts {
		if err := os.Mkdir(point, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return false, err
		}
		bindErr := bindmount.Bind(m.Mountpoint, point, false)
		if bindErr == nil {
			var st unix.Stat_t
			bindErr = unix.Stat(point, &st)
			// The root of an overlay has the inode number of its upper.
			if bindErr == nil && st.Dev == unix.Mkdev(uint32(m.Major), uint32(m.Minor)) && st.Ino == upper.Ino {
				return true, nil
			}
		}
		// Another mount covers it, or it is gone.
		err = errors.Join(err, bindErr)
		if err := mountdir.Remove(point, false); err != nil {
			return false, errors.Join(inUse, err)
		}
	}
	return false, err
}

// isWritable reports whether neither a mount nor its filesystem is read-only.
func isWritable(m *mountinfo.Info) bool {
	options := strings.Split(m.Options+","+m.VFSOptions, ",")
	return !slices.Contains(options, "ro")
}

// isOverlayOf reports whether an overlay is that of a volume's tree over a lower, and of nothing else.
func isOverlayOf(m *mountinfo.Info, lower, tree string) bool {
	return slices.Equal(mounttable.LayersOf(m.VFSOptions), []string{lower, upperOf(tree), workOf(tree)})
}

// checkNotMounted checks that nobody else has mounted an overlay of a volume: the kernel allows two of one upper, and
// they would disturb each other. Overlays of killed processes go.
func (b *Backend) checkNotMounted(dir, name string) error {
	err := b.checkNoOverlay(dir, name)
	if errors.Is(err, fault.ErrInUse) {
		b.sweepAll()
		err = b.checkNoOverlay(dir, name)
	}
	return err
}

func (b *Backend) checkNoOverlay(dir, name string) error {
	uses, err := b.overlays.UsesOf(filepath.Join(dir, sharedmark.Dir), b.self.Volume(name).IsUpper())
	if err != nil {
		return err
	}
	return mounttable.InUse("the root of volume "+name, uses)
}

// isOverlay reports whether an overlay is mounted on dir.
func isOverlay(dir string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Type == unix.OVERLAYFS_SUPER_MAGIC, nil
}

// sourceOf is the source of the overlay over the trees of a volume and its lower, which are in these directories. They have the
// names of the volumes, or the names of views, which are no volumes. The command finds the volume by the name in the source.
func (b *Backend) sourceOf(lower, tree, name string) string {
	upper := b.self.Volume(filepath.Base(tree))
	return overlaysource.Source{Upper: upper, Lower: b.self.Volume(filepath.Base(lower)), Name: name}.String()
}

// flagsKept are flags of a volume's mount that its overlay has too. They are the same bits as MS_*.
const flagsKept = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NOATIME | unix.ST_NODIRATIME

// mountOverlay mounts an overlay of the upper in a tree on a new directory, whose name is in the source of the mount too.
// Without a work directory the overlay is read-only.
func (b *Backend) mountOverlay(point, lower, tree, work, mountLabel string) error {
	upper := upperOf(tree)
	has, err := b.supported()
	if err != nil {
		return err
	}
	options, err := mountOptions(lower, upper, work, has)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(upper, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: upper, Err: err}
	}
	flags := uintptr(st.Flags) & flagsKept
	if work == "" {
		flags |= unix.MS_RDONLY
	}
	if err := os.Mkdir(point, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	data := label.FormatMountLabel(strings.Join(options, ","), mountLabel)
	if err := unix.Mount(b.sourceOf(lower, tree, filepath.Base(point)), point, "overlay", flags, data); err != nil {
		return errors.Join(&fs.PathError{Op: "mount overlay", Path: point, Err: err}, mountdir.Remove(point, false))
	}
	return nil
}

// Unmount releases one Mount.
func (b *Backend) Unmount(_ context.Context, name string) error {
	err := b.mounts.Release(name, inuse.Held, func(m *mounted) error {
		return b.release(name, m, func() bool { return true })
	})
	return fault.Wrap("unmount volume", name, err)
}

// release unmounts a volume. If its overlay is busy or mounted elsewhere too, or may says no, the overlay stays, and keeps
// the volume in use. The next Mount then finds it: a second overlay of the same upper is not possible.
func (b *Backend) release(name string, m *mounted, may func() bool) error {
	if m.lower == "" {
		return b.Backend.Unmount(b.ctx, name)
	}
	unmount := func() error {
		switch {
		case m.bound:
			return b.removePoint(name)
		case !may():
			return nil
		}
		return b.unmountPoint(name)
	}
	return errors.Join(m.lock.Unlock(unmount), b.Backend.Unmount(b.ctx, m.lower), b.Backend.Unmount(b.ctx, name))
}

// unmountPoint unmounts the overlay of a volume, unless it is busy, mounted elsewhere in this mount namespace too, or a layer
// of another overlay. That would keep the upper in use unseen. Copies of the mount that other namespaces were made with do
// not count: nobody may know of them.
func (b *Backend) unmountPoint(name string) error {
	if isElsewhere, err := isMountedElsewhere(b.point(name)); isElsewhere || err != nil {
		return err
	}
	if over, err := b.overlays.UsesOf(b.point(name), nil); len(over) > 0 || err != nil {
		return err
	}
	return b.removePoint(name)
}

// removePoint unmounts the overlay of a volume from its mount point, unless it is busy there.
func (b *Backend) removePoint(name string) error {
	err := mountdir.Remove(b.point(name), false)
	if errors.Is(err, unix.EBUSY) {
		b.log.Debug("shared roots: an overlay is busy and stays mounted", "volume", name)
		return nil
	}
	return err
}

// isMountedElsewhere reports whether the filesystem that is mounted on a directory has other mounts in this mount
// namespace.
func isMountedElsewhere(dir string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return false, err
	}
	isAt := func(m *mountinfo.Info) bool { return m.Mountpoint == dir }
	i := slices.IndexFunc(mounts, isAt)
	return i >= 0 && slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool {
		return !isAt(m) && m.Major == mounts[i].Major && m.Minor == mounts[i].Minor
	}), nil
}

// unmountLeft unmounts the overlay of a volume if no process has it in use: it was busy, or a crash has left it.
func (b *Backend) unmountLeft(name string) {
	if is, err := isOverlay(b.point(name)); !is || err != nil {
		return
	}
	lock, ok, err := namelock.TryExclusive(b.uses, mountKey(name))
	if ok {
		err = errors.Join(b.unmountPoint(name), lock.Unlock(nil))
	}
	if err != nil {
		b.log.Warn("shared roots: a mount that is no longer used cannot be unmounted, and stays", "volume", name, "error", err)
	}
}
