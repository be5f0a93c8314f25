package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/poll"
)

// Mount mounts a volume's dataset, read-only if the volume is sealed. It makes system calls, and runs no process.
func (b *Backend) Mount(ctx context.Context, name, mountLabel string) (string, error) {
	if err := b.mount(ctx, name, mountLabel, inuse.Held); err != nil {
		return "", fault.Wrap("mount volume", name, err)
	}
	return b.mountpoint(name), nil
}

// Unmount releases one Mount. After the last, the dataset is unmounted; processes keep the files that they have open in
// it.
func (b *Backend) Unmount(_ context.Context, name string) error {
	return fault.Wrap("unmount volume", name, b.unmount(name, inuse.Held))
}

// mount counts one use of a volume's mount. This process has the volume's lock as long as it has the volume mounted.
func (b *Backend) mount(ctx context.Context, name, mountLabel string, kind inuse.Kind) error {
	if _, err := b.volume(ctx, name); err != nil {
		return err
	}
	waiting, cancel, err := b.zfs.waiting(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	_, err = b.mounts.Acquire(waiting, name, kind, func() (namelock.Lock, error) {
		lock, err := b.shareVolume(waiting, name)
		if err != nil {
			return namelock.Lock{}, err
		}
		if err := b.mountDataset(ctx, name, mountLabel); err != nil {
			return namelock.Lock{}, errors.Join(err, b.after(err, func() error {
				ctx, cancel := b.ending()
				defer cancel()
				return b.unlockMount(ctx, name, lock, false)
			}))
		}
		return lock, nil
	})
	return err
}

func (b *Backend) unmount(name string, kind inuse.Kind) error {
	return b.mounts.Release(name, kind, func(lock namelock.Lock) error {
		ctx, cancel := b.ending()
		defer cancel()
		return b.unlockMount(ctx, name, lock, true)
	})
}

// ending returns a context for the end of a use, which nobody cancels and which has some time.
func (b *Backend) ending() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(b.ctx, b.zfs.grace, fault.New(errdefs.ErrUnavailable, "the kernel takes longer than %s", b.zfs.grace))
}

// unlockMount gives up the lock of a mounted volume. It unmounts the volume first, unless another process uses the same
// mount. If the unmount is left to itself, the lock is given up at its end.
func (b *Backend) unlockMount(ctx context.Context, name string, lock namelock.Lock, detach bool) error {
	alone, err := lock.Leave()
	if alone {
		err = b.unmountAt(ctx, b.mountpoint(name), detach)
	}
	return errors.Join(err, b.after(err, func() error { return lock.Unlock(nil) }))
}

func (b *Backend) mountDataset(ctx context.Context, name, mountLabel string) error {
	// While this waited for the lock, a process may have sealed the volume and been killed before it told others.
	isSealed, err := b.isSealed(ctx, name)
	if err != nil {
		return err
	}
	flags := uintptr(0)
	if isSealed || b.frozen {
		flags = unix.MS_RDONLY
	}
	err = b.mountWaiting(ctx, b.datasetOf(name), b.mountpoint(name), flags, label.FormatMountLabel("", mountLabel))
	if errors.Is(err, unix.EBUSY) {
		return b.busy(err, b.datasetOf(name))
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		b.volumes.invalidate()
	}
	return err
}

// mountWaiting mounts like mountAt, and waits a while if the source is busy. If two callers mount a source at once,
// OpenZFS may return EBUSY to one of them. It also does so while an unmount ends in the background. mountWaiting does
// nothing if another process has mounted the source on dir already.
func (b *Backend) mountWaiting(ctx context.Context, source, dir string, flags uintptr, data string) error {
	return poll.WhileBusy(ctx, patient(busyFor), func() (busy bool, err error) {
		err = b.mountAt(ctx, source, dir, flags, data)
		if !errors.Is(err, unix.EBUSY) {
			return false, err
		}
		mounted, infoErr := isMountedAt(source, dir)
		if mounted || infoErr != nil {
			return false, infoErr
		}
		return true, err
	})
}

// mountAt mounts a dataset or snapshot on dir, and makes dir if that is missing. Like a call of the kernel module, a mount
// may be left to itself. If it is made after all, it is unmounted if dir is in views, where nobody else has it. A mount in
// graph goes with the lock of its volume.
func (b *Backend) mountAt(ctx context.Context, source, dir string, flags uintptr, data string) error {
	var undo func(context.Context) error
	if filepath.Dir(dir) == b.views {
		undo = func(ctx context.Context) error { return b.unmountAt(ctx, dir, true) }
	}
	err := b.change(ctx, step{op: "mkdir", do: func(kernel) error { return makeDir(dir) }, happened: isPresent(dir), undo: undo})
	if err != nil {
		return err
	}
	err = b.change(ctx, step{
		op:       "mount",
		do:       func(k kernel) error { return k.Mount(source, dir, flags, data) },
		happened: func(context.Context) (bool, error) { return isMountedAt(source, dir) },
		undo:     undo,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return fault.New(errdefs.ErrNotFound, "dataset %s is gone", source)
	case errors.Is(err, unix.EACCES):
		return fault.New(errdefs.ErrFailedPrecondition, "dataset %s: its key is not loaded, run \"zfs load-key\": %w", source, err)
	case err != nil:
		return fmt.Errorf("mount %s on %s: %w", source, dir, err)
	}
	return nil
}

// makeDir makes a mount point if it is missing.
func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// unmountAt unmounts everything on dir, and removes dir. With detach it unmounts busy mounts too. unmount(2) writes back,
// so it waits for the pool. Returns errdefs.ErrUnavailable if the pool is suspended: the mount stays then, for the next
// user of the volume, or for the next start. Like a call of the kernel module, an unmount may be left to itself.
func (b *Backend) unmountAt(ctx context.Context, dir string, detach bool) error {
	err := b.change(ctx, step{
		op:       "unmount",
		do:       func(k kernel) error { return k.Unmount(dir, detach) },
		happened: isAbsentAt(dir),
	})
	if isLost(err) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return err
}

// unmountBelow unmounts everything below dir, and removes the mount points.
func (b *Backend) unmountBelow(ctx context.Context, dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if m.Mountpoint != dir { // mounted by keepPrivate
			errs = append(errs, b.unmountAt(ctx, m.Mountpoint, false))
		}
	}
	return errors.Join(append(errs, mountdir.RemoveFiles(dir))...)
}

// isMountedAt reports whether a dataset or snapshot is mounted on dir.
func isMountedAt(source, dir string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		return false, err
	}
	for _, m := range mounts {
		if m.FSType == "zfs" && m.Source == source {
			return true, nil
		}
	}
	return false, nil
}

// isMounted reports whether a dataset is mounted in any mount namespace, or still open after it was unmounted. The
// kernel keeps statistics of such datasets only, each in a file that has the number of its object set in its name.
func (b *Backend) isMounted(ctx context.Context, dataset string) (bool, error) {
	d, err := b.stats(ctx, dataset)
	if isRefused(err) && errors.Is(err, unix.ENOENT) {
		return false, nil // nothing is there
	}
	if err != nil {
		return false, err
	}
	id, ok := d.Properties.Number("objsetid")
	if !ok {
		return false, fmt.Errorf("zfs get: %s has no objsetid", dataset)
	}
	return isPresent(filepath.Join(b.zfs.kstats, b.zfs.pool, fmt.Sprintf("objset-0x%x", id)))(ctx)
}

// Sync makes the content of the volume survive a power cut, by way of its ZFS intent log.
func (b *Backend) Sync(ctx context.Context, name string) (err error) {
	defer func() { err = fault.Wrap("sync volume", name, err) }()
	if err := b.mount(ctx, name, "", inuse.Brief); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.unmount(name, inuse.Brief)) }()
	return b.syncMounted(ctx, name)
}

// syncMounted writes the content of a mounted volume back.
func (b *Backend) syncMounted(ctx context.Context, name string) error {
	return b.zfs.ask(ctx, "sync", func() error { return syncFilesystem(b.mountpoint(name)) })
}

func syncFilesystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
