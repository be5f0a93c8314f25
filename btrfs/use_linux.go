package btrfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/poll"
)

// acquire counts one more use of a volume. While the volume is in use, its root is open and has a shared lock, which
// other processes notice.
func (b *Backend) acquire(ctx context.Context, name string, kind inuse.Kind) (*subvolume, error) {
	return b.uses.Acquire(ctx, name, kind, func() (*subvolume, error) {
		return b.lockVolume(ctx, name, b.lockShared)
	})
}

func (b *Backend) release(name string, kind inuse.Kind) error {
	return b.uses.Release(name, kind, (*subvolume).Close)
}

// claim takes a volume that nobody uses for the caller alone, so that it can be changed as a whole. Others wait before
// they can use it. The caller calls done. Returns errdefs.ErrFailedPrecondition if the volume is in use, here or in
// another process, or is mounted by other means.
func (b *Backend) claim(ctx context.Context, name string) (*claimed, error) {
	release, err := b.uses.Claim(ctx, name)
	if err != nil {
		return nil, err
	}
	dir, err := b.lockVolume(ctx, name, lockAlone)
	if err != nil {
		release()
		return nil, err
	}
	c := &claimed{subvolume: dir, b: b, name: name, release: release}
	if err := b.checkNotMounted(name); err != nil {
		return nil, errors.Join(err, c.done())
	}
	return c, nil
}

// lockVolume opens a volume and locks it: with lockShared to use it, or with lockAlone to change it. If the volume lost
// its name before it was locked, lockVolume opens the name again. It reads the information about the volume under the
// lock, so that information holds as long as the lock.
func (b *Backend) lockVolume(ctx context.Context, name string, lock func(context.Context, *os.File) error) (*subvolume, error) {
	if err := cowcommon.CheckID(name); err != nil {
		return nil, err
	}
	for {
		file, err := openRoot(b.dirs.subvolumes, name)
		if err != nil {
			return nil, volumeError(name, err)
		}
		if err := lock(ctx, file); err != nil {
			return nil, errors.Join(err, file.Close())
		}
		dir, err := b.examine(file)
		if errors.Is(err, unix.ENOENT) {
			continue // the volume has been removed meanwhile
		}
		if err != nil {
			return nil, volumeError(name, err)
		}
		if dir.info.ParentID == b.dirs.subvolumesID && dir.info.DirID == b.dirs.subvolumesIno && dir.info.Name == name {
			if err := b.checkNotDoomed(dir); err != nil {
				return nil, errors.Join(err, dir.Close())
			}
			return dir, nil
		}
		if err := dir.Close(); err != nil {
			return nil, err
		}
	}
}

// lockAlone locks exclusively. Returns errdefs.ErrFailedPrecondition if another process uses the volume.
func lockAlone(_ context.Context, dir *os.File) error {
	ok, err := flock.TryExclusive(dir)
	if err == nil && !ok {
		err = inuse.ByAnotherProcess(filepath.Base(dir.Name()))
	}
	return err
}

// lockShared waits until another process has ended its change of the volume. Changes take milliseconds. A lock of
// seconds is that of a process inside the layer, which has locked its own root. Such a lock must not prevent the use of
// the layer, so lockShared then goes on without a lock.
func (b *Backend) lockShared(ctx context.Context, dir *os.File) error {
	pauses := poll.Pauses{First: time.Millisecond, Longest: 50 * time.Millisecond, AtMost: 2 * time.Second}
	ok := false
	err := poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		ok, err = flock.TryShared(dir)
		return !ok && err == nil, err
	})
	if err == nil && !ok {
		b.log.Warn("btrfs: another program has locked the root of a layer, so other processes cannot see that the layer is in use", "path", dir.Name())
	}
	return err
}

// openVolume opens the root of a volume, without a use or a claim of it. Returns errdefs.ErrNotFound if no volume has
// that name.
func (b *Backend) openVolume(name string) (*subvolume, error) {
	if err := cowcommon.CheckID(name); err != nil {
		return nil, err
	}
	for {
		file, err := openRoot(b.dirs.subvolumes, name)
		if err != nil {
			return nil, volumeError(name, err)
		}
		dir, err := b.examine(file)
		if errors.Is(err, unix.ENOENT) {
			continue // the volume has been removed meanwhile
		}
		if err != nil {
			return nil, volumeError(name, err)
		}
		if err = b.checkNotDoomed(dir); err == nil {
			return dir, nil
		}
		if err := dir.Close(); err != nil {
			return nil, err
		}
		if !errors.Is(err, errDoomed) || b.hasName(name, dir.info.ID) {
			return nil, err
		}
	}
}

// hasName reports whether the volume with an id has the name. It cannot be seen of a name that cannot be opened.
func (b *Backend) hasName(name string, id uint64) bool {
	now, err := b.openSubvolume(b.dirs.subvolumes, name)
	if err != nil {
		return !errors.Is(err, unix.ENOENT)
	}
	defer now.Close()
	return now.info.ID == id
}

// withVolume calls do with a volume, without a use or a claim of it. If the volume is gone then, and another has its name, as after
// Exchange and Remove, do is called again. The error names the operation.
func (b *Backend) withVolume(operation, name string, do func(dir *subvolume) error) error {
	for {
		dir, err := b.openVolume(name)
		if err == nil {
			err = errors.Join(do(dir), dir.Close())
		}
		if dir != nil && isGone(err) && !b.hasName(name, dir.info.ID) {
			continue
		}
		return fault.Wrap(operation+" volume", name, err)
	}
}

// isGone reports whether an error is that of a volume which does not exist any more.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errdefs.IsNotFound(err) }

// withNamed is withVolume, and calls do again if another volume has the name afterwards. If that cannot be seen, the first call
// counts.
func (b *Backend) withNamed(operation, name string, do func(dir *subvolume) error) error {
	for {
		var did uint64
		err := b.withVolume(operation, name, func(dir *subvolume) error {
			did = dir.info.ID
			return do(dir)
		})
		if err != nil {
			return err
		}
		var now uint64
		err = b.withVolume(operation, name, func(dir *subvolume) error {
			now = dir.info.ID
			return nil
		})
		if err != nil {
			b.log.Debug("btrfs: it cannot be seen if the volume still has its name", "volume", name, "error", err)
			return nil
		}
		if now == did {
			return nil
		}
	}
}

func volumeError(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(errdefs.ErrNotFound, "volume %s", name)
	}
	return err
}

// Mount returns the path of a volume's subvolume: on btrfs every volume is always reachable. The mount counts as a use
// all the same. Mount ignores the label: the tree got its label when it was made.
func (b *Backend) Mount(ctx context.Context, name, _ string) (string, error) {
	dir, err := b.acquire(ctx, name, inuse.Held)
	if err != nil {
		return "", fault.Wrap("mount volume", name, err)
	}
	if err := b.applyRecordedLimit(ctx, name, dir); err != nil {
		return "", errors.Join(fault.Wrap("mount volume", name, err), b.Unmount(ctx, name))
	}
	return dir.Name(), nil
}

// Unmount releases one Mount.
func (b *Backend) Unmount(_ context.Context, name string) error {
	return fault.Wrap("unmount volume", name, b.release(name, inuse.Held))
}
