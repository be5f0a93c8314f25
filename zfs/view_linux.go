package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
)

// view is a mounted snapshot: the one that seals a volume, or one taken for the view alone.
//
// Its lock file, the directory that it is mounted on and, if it was taken for the view, the snapshot have the
// same name but for what comes before the "@". So whoever finds the lock free can take away all three.
type view struct {
	b         *Backend
	volume    string
	snapshot  string // full name
	temporary bool   // it was taken for this view
	dir       string
	lock      *os.File

	closeOnce sync.Once
	closeErr  error
}

// View mounts the snapshot that seals a volume, or takes one of a volume that is not sealed and mounts that.
func (b *Backend) View(ctx context.Context, name string) (cowcommon.View, error) {
	v, err := b.view(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("zfs: view %s: %w", name, err)
	}
	b.viewsMu.Lock()
	defer b.viewsMu.Unlock()
	b.openViews[v] = struct{}{}
	return v, nil
}

func (b *Backend) view(ctx context.Context, name string) (_ *view, err error) {
	d, err := b.volume(ctx, name)
	if err != nil {
		return nil, err
	}
	v := &view{b: b, volume: name, temporary: !d.sealed}
	var lockName string
	if d.sealed {
		v.snapshot = b.datasetOf(name) + "@" + sealName
		lockName = temporaryName(name + "@" + sealName + "-")
	} else {
		lockName = temporaryName(name + "@" + viewPrefix)
		v.snapshot = b.datasetOf(lockName)
	}
	v.dir = filepath.Join(b.views, lockName)
	lock, ok, err := b.tryLock(lockName)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%s: %w", lockName, errdefs.ErrAlreadyExists)
	}
	v.lock = lock

	if v.temporary {
		if err := b.snapshot(ctx, v); err != nil {
			return nil, errors.Join(err, b.unlock(lock, nil))
		}
	}
	if err := b.mountAt(v.snapshot, v.dir, unix.MS_RDONLY, ""); err != nil {
		b.volumes.invalidate() // it should have been there
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// snapshot takes the snapshot for a view.
func (b *Backend) snapshot(ctx context.Context, v *view) error {
	if b.mounts.Held(v.volume) > 0 {
		// What programs have written through memory maps.
		if err := syncFilesystem(b.mountpoint(v.volume)); err != nil {
			return err
		}
	}
	if _, err := b.zfs.run(ctx, "snapshot", v.snapshot); err != nil {
		return b.explainMissing(ctx, err, v.volume)
	}
	return nil
}

// Dir is the absolute path of the view's root.
func (v *view) Dir() string { return v.dir }

// Close unmounts the snapshot, and destroys it if it was taken for this view.
func (v *view) Close() error {
	v.closeOnce.Do(func() {
		v.b.viewsMu.Lock()
		delete(v.b.openViews, v)
		v.b.viewsMu.Unlock()
		if v.closeErr = v.close(); v.closeErr != nil {
			v.closeErr = fmt.Errorf("zfs: close view of %s: %w", v.volume, v.closeErr)
		}
	})
	return v.closeErr
}

func (v *view) close() error {
	err := v.b.unlock(v.lock, func() error {
		if err := unmountPoint(v.dir, true); err != nil {
			return err
		}
		if !v.temporary {
			return nil
		}
		return v.b.destroySnapshot(v.snapshot)
	})
	if isCommandError(err) {
		// Files of it that are still open keep it busy. Its lock file stays, so that it goes later: with the volume,
		// or when the home is next opened.
		v.b.log.Debug("zfs: the snapshot of a view cannot go yet", "snapshot", v.snapshot, "error", err)
		return nil
	}
	return err
}

// snapshotBusyFor is for how long the snapshot of a view may be busy after it was unmounted, which the kernel may end
// in the background.
const snapshotBusyFor = 300 * time.Millisecond

// destroySnapshot destroys the snapshot of a view, and waits a while for it if it is busy.
func (b *Backend) destroySnapshot(snapshot string) error {
	giveUp := time.After(snapshotBusyFor)
	for {
		_, err := b.zfs.run(context.Background(), "destroy", snapshot)
		if !isCommandError(err) {
			return err
		}
		select {
		case <-time.After(snapshotBusyFor / 3):
		case <-giveUp:
			return err
		}
	}
}

// deadViews are views of a volume whose processes are gone, or which could not be taken away when they were closed.
type deadViews struct {
	locks     []string // paths of their lock files, which nobody holds
	snapshots []string // that were taken for them
}

// endDeadViews unmounts the dead views of a volume. errdefs.ErrFailedPrecondition: another view is open.
func (b *Backend) endDeadViews(name string) (dead deadViews, err error) {
	entries, err := os.ReadDir(b.locks)
	if err != nil {
		return deadViews{}, err
	}
	for _, entry := range entries {
		snapshot, ok := strings.CutPrefix(entry.Name(), name+"@")
		if !ok {
			continue
		}
		lock, ok, err := b.tryLock(entry.Name())
		if err != nil {
			return deadViews{}, err
		}
		if !ok {
			return deadViews{}, fmt.Errorf("a view of it is open: %w", errdefs.ErrFailedPrecondition)
		}
		dead.locks = append(dead.locks, lock.Name())
		if strings.HasPrefix(snapshot, viewPrefix) {
			dead.snapshots = append(dead.snapshots, b.datasetOf(entry.Name()))
		}
		if err := errors.Join(unmountPoint(filepath.Join(b.views, entry.Name()), true), lock.Close()); err != nil {
			return deadViews{}, err
		}
	}
	return dead, nil
}

// forget removes the lock files of views that are gone for good.
func (d deadViews) forget() error {
	var errs []error
	for _, lock := range d.locks {
		if err := os.Remove(lock); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
