package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

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
	defer unlock()
	if u == nil {
		dir, err := b.openVolume(name)
		if err != nil {
			return nil, err
		}
		// A process inside the layer can lock its root too. It only harms itself, so nothing is made of it.
		_ = unix.Flock(dir.fd(), unix.LOCK_SH|unix.LOCK_NB)
		u = &use{dir: dir}
		b.uses[name] = u
	}
	count(u)
	return u.dir, nil
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
// process.
func (b *Backend) claim(ctx context.Context, name string) (dir *subvolume, done func() error, err error) {
	u, unlock, err := b.unclaimed(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if u != nil {
		return nil, nil, fmt.Errorf("volume %s is in use (mounts: %d, views: %d): %w", name, u.mounts, u.views, errdefs.ErrFailedPrecondition)
	}
	dir, err = b.openVolume(name)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.Flock(dir.fd(), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, fmt.Errorf("volume %s is in use by another process: %w", name, errdefs.ErrFailedPrecondition)
		}
		return nil, nil, fmt.Errorf("lock volume %s: %w", name, err)
	}
	changed := make(chan struct{})
	b.uses[name] = &use{dir: dir, changed: changed}
	return dir, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.uses, name)
		close(changed)
		return dir.Close()
	}, nil
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
