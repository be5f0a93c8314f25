package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
)

// use says how a volume is used in this process. While it is used its root is held open and locked
// shared, which tells other processes.
type use struct {
	dir     *subvolume
	mounts  int
	views   int
	changed chan struct{} // while the volume is claimed: closed when that ends
}

// acquire counts one more use of the volume name, by calling count with its record.
func (b *Backend) acquire(ctx context.Context, name string, count func(*use)) (*subvolume, error) {
	u, unlock, err := b.unclaimed(ctx, name)
	if err != nil {
		return nil, err
	}
	if u != nil {
		defer unlock()
		count(u)
		return u.dir, nil
	}
	done := b.reserve(name)
	unlock()

	dir, err := b.lockVolume(ctx, name, unix.LOCK_SH)
	b.mu.Lock()
	defer b.mu.Unlock()
	done()
	if err != nil {
		return nil, err
	}
	u = &use{dir: dir}
	b.uses[name] = u
	count(u)
	return dir, nil
}

// reserve claims the name, with b.mu locked, until the function that it returns is called, also with b.mu
// locked.
func (b *Backend) reserve(name string) (done func()) {
	changed := make(chan struct{})
	b.uses[name] = &use{changed: changed}
	return func() {
		delete(b.uses, name)
		close(changed)
	}
}

// release undoes one use, by calling count with the volume's record if there is one.
func (b *Backend) release(name string, count func(*use)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.uses[name]
	if u == nil || u.changed != nil {
		return nil
	}
	count(u)
	if u.mounts > 0 || u.views > 0 {
		return nil
	}
	delete(b.uses, name)
	return u.dir.Close()
}

// claim takes a volume that nobody uses for itself, so that it can be changed as a whole; whoever wants
// to use it waits. The caller calls done. errdefs.ErrFailedPrecondition: it is in use, here or in another
// process, or is mounted by other means.
func (b *Backend) claim(ctx context.Context, name string) (dir *subvolume, done func() error, err error) {
	u, unlock, err := b.unclaimed(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if u != nil {
		defer unlock()
		return nil, nil, fmt.Errorf("volume %s is in use (mounts: %d, views: %d): %w", name, u.mounts, u.views, errdefs.ErrFailedPrecondition)
	}
	release := b.reserve(name)
	unlock()

	done = func() error {
		b.mu.Lock()
		release()
		b.mu.Unlock()
		if dir == nil {
			return nil
		}
		return dir.Close()
	}
	if dir, err = b.lockVolume(ctx, name, unix.LOCK_EX); err != nil {
		return nil, nil, errors.Join(err, done())
	}
	mounted, err := mountedElsewhere(dir)
	if err == nil && mounted {
		err = fmt.Errorf("volume %s is mounted: %w", name, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return dir, done, nil
}

// lockVolume opens a volume and locks it, shared to use it or exclusively to change it. The lock is on the
// volume that has the name now, not on one that had it when it was opened.
func (b *Backend) lockVolume(ctx context.Context, name string, how int) (*subvolume, error) {
	for {
		dir, err := b.openVolume(name)
		if err != nil {
			return nil, err
		}
		if how == unix.LOCK_SH {
			err = b.lockShared(ctx, dir)
		} else if err = unix.Flock(dir.fd(), how|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("volume %s is in use by another process: %w", name, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return nil, errors.Join(err, dir.Close())
		}
		same, err := b.hasName(dir, name)
		if err == nil && same {
			return dir, nil
		}
		if err := errors.Join(err, dir.Close()); err != nil {
			return nil, err
		}
	}
}

// lockShared waits for another process to end what it changes. That takes milliseconds, so what lasts longer
// is a process inside the layer that has locked its own root: that must not keep the layer from being used.
func (b *Backend) lockShared(ctx context.Context, dir *subvolume) error {
	const longest = 2 * time.Second
	giveUp := time.After(longest)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := unix.Flock(dir.fd(), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-giveUp:
			b.log.Warn("btrfs: somebody has locked the root of a layer, so other processes cannot see that it is in use", "path", dir.Name())
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// hasName reports whether the volume of that name is the one open as dir. Each subvolume has a device number
// of its own.
func (b *Backend) hasName(dir *subvolume, name string) (bool, error) {
	var own, named unix.Stat_t
	if err := unix.Fstat(dir.fd(), &own); err != nil {
		return false, err
	}
	err := unix.Fstatat(int(b.dirs.subvolumes.Fd()), name, &named, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil // opening it anew will say so
	}
	return err == nil && own.Dev == named.Dev, err
}

// unclaimed waits until nobody has claimed the volume, and returns its record, nil if it is not in use,
// with b.mu locked.
func (b *Backend) unclaimed(ctx context.Context, name string) (u *use, unlock func(), err error) {
	for {
		b.mu.Lock()
		u := b.uses[name]
		if u == nil || u.changed == nil {
			return u, b.mu.Unlock, nil
		}
		b.mu.Unlock()
		select {
		case <-u.changed:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// openVolume opens the root of a volume. errdefs.ErrNotFound: there is none of that name.
func (b *Backend) openVolume(name string) (*subvolume, error) {
	if err := cowcommon.CheckID(name); err != nil {
		return nil, err
	}
	dir, err := b.openSubvolume(b.dirs.subvolumes, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("volume %s: %w", name, errdefs.ErrNotFound)
	}
	return dir, err
}

// Mount returns the path of a volume's subvolume: on btrfs every volume is reachable as it is. The mount
// counts as a use all the same. A label was given to the tree when it was made.
func (b *Backend) Mount(ctx context.Context, name, _ string) (string, error) {
	dir, err := b.acquire(ctx, name, func(u *use) { u.mounts++ })
	if err != nil {
		return "", fmt.Errorf("btrfs: mount: %w", err)
	}
	if err := b.applyRecordedLimit(ctx, name, dir); err != nil {
		return "", errors.Join(fmt.Errorf("btrfs: mount %s: %w", name, err), b.Unmount(ctx, name))
	}
	return dir.Name(), nil
}

// Unmount releases one Mount.
func (b *Backend) Unmount(_ context.Context, name string) error {
	err := b.release(name, func(u *use) { u.mounts = max(0, u.mounts-1) })
	if err != nil {
		return fmt.Errorf("btrfs: unmount %s: %w", name, err)
	}
	return nil
}
