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

// acquire counts one more use of a volume. While it is used its root is open and locked shared, which tells
// other processes.
func (b *Backend) acquire(ctx context.Context, name string, kind inuse.Kind) (*subvolume, error) {
	return b.uses.Acquire(ctx, name, kind, func() (*subvolume, error) {
		return b.lockVolume(ctx, name, b.lockShared)
	})
}

func (b *Backend) release(name string, kind inuse.Kind) error {
	return b.uses.Release(name, kind, (*subvolume).Close)
}

// claim takes a volume that nobody uses for itself, so that it can be changed as a whole; whoever wants
// to use it waits. The caller calls done. errdefs.ErrFailedPrecondition: it is in use, here or in another
// process, or is mounted by other means.
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

// lockVolume opens a volume and locks it: with lockShared to use it, or with lockAlone to change it. The lock is on the
// volume that has the name now, not on one that had it when it was opened, and what is said about the volume holds
// as long as the lock.
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
			continue // it has been removed meanwhile
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

// lockAlone locks exclusively. errdefs.ErrFailedPrecondition: another process uses the volume.
func lockAlone(_ context.Context, dir *os.File) error {
	ok, err := flock.TryExclusive(dir)
	if err == nil && !ok {
		err = inuse.ByAnotherProcess(filepath.Base(dir.Name()))
	}
	return err
}

// lockShared waits for another process to end what it changes. That takes milliseconds, so what lasts longer
// is a process inside the layer that has locked its own root: that must not keep the layer from being used.
func (b *Backend) lockShared(ctx context.Context, dir *os.File) error {
	pauses := poll.Pauses{First: time.Millisecond, Longest: 50 * time.Millisecond, AtMost: 2 * time.Second}
	ok := false
	err := poll.WhileBusy(ctx, pauses, func() (busy bool, err error) {
		ok, err = flock.TryShared(dir)
		return !ok && err == nil, err
	})
	if err == nil && !ok {
		b.log.Warn("btrfs: somebody has locked the root of a layer, so other processes cannot see that it is in use", "path", dir.Name())
	}
	return err
}

// openVolume opens the root of a volume, whatever is being done with it. errdefs.ErrNotFound: there is none of that
// name.
func (b *Backend) openVolume(name string) (*subvolume, error) {
	if err := cowcommon.CheckID(name); err != nil {
		return nil, err
	}
	dir, err := b.openSubvolume(b.dirs.subvolumes, name)
	if err != nil {
		return nil, volumeError(name, err)
	}
	if err := b.checkNotDoomed(dir); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// withVolume calls do with a volume, whatever is being done with it. Its error says the operation.
func (b *Backend) withVolume(operation, name string, do func(dir *subvolume) error) error {
	dir, err := b.openVolume(name)
	if err == nil {
		defer dir.Close()
		err = do(dir)
	}
	return fault.Wrap(operation+" volume", name, err)
}

func volumeError(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(errdefs.ErrNotFound, "volume %s", name)
	}
	return err
}

// Mount returns the path of a volume's subvolume: on btrfs every volume is reachable as it is. The mount
// counts as a use all the same. A label was given to the tree when it was made.
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
