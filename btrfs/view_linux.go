package btrfs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// view is a read-only subvolume: that of a sealed volume itself, or a snapshot in the directory views.
type view struct {
	b        *Backend
	volume   string
	snapshot string // name in the directory views; "" if the view is the volume itself
	dir      *subvolume
	nested   []nestedSubvolume // which the volume has, and so the view

	closeOnce sync.Once
	closeErr  error
}

// View opens a sealed volume itself, or a read-only snapshot of a volume that is not sealed, which costs
// about a millisecond and writes back what has been written to the volume so far.
func (b *Backend) View(ctx context.Context, name string) (cowcommon.View, error) {
	dir, err := b.acquire(ctx, name, func(u *use) { u.views++ })
	if err != nil {
		return nil, fmt.Errorf("btrfs: view: %w", err)
	}
	v := &view{b: b, volume: name, dir: dir}
	if err := v.open(); err != nil {
		return nil, fmt.Errorf("btrfs: view %s: %w", name, errors.Join(err, v.releaseVolume()))
	}
	if v.snapshot != "" { // which stands by itself
		if err := v.releaseVolume(); err != nil {
			return nil, fmt.Errorf("btrfs: view %s: %w", name, errors.Join(err, v.close()))
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.views[v] = struct{}{}
	return v, nil
}

func (v *view) open() error {
	// Asked anew: it may have been sealed since it was opened.
	sealed, err := btrfsctl.ReadOnly(v.dir.fd())
	if err != nil {
		return err
	}
	if v.nested, err = v.b.nestedIn(v.dir.info.ID); err != nil || sealed {
		return err
	}
	snapshot := temporaryName(v.volume)
	shallow := len(v.nested) == 0
	if err := btrfsctl.Snapshot(int(v.b.dirs.views.Fd()), snapshot, v.dir.fd(), shallow, nil); err != nil {
		return fmt.Errorf("snapshot: %w", snapshotError(err))
	}
	dir, err := v.b.openSubvolume(v.b.dirs.views, snapshot)
	if err != nil {
		return errors.Join(err, v.b.destroy(v.b.dirs.views, snapshot))
	}
	if !shallow {
		if err := v.b.snapshotNested(dir, v.dir.info.ID, v.nested); err != nil {
			return errors.Join(err, dir.Close(), v.b.destroy(v.b.dirs.views, snapshot))
		}
	}
	v.dir, v.snapshot = dir, snapshot
	return nil
}

func (v *view) releaseVolume() error {
	return v.b.release(v.volume, func(u *use) { u.views-- })
}

// Dir is the absolute path of the view's root.
func (v *view) Dir() string { return v.dir.Name() }

// Close releases the volume, or destroys the snapshot.
func (v *view) Close() error {
	v.closeOnce.Do(func() {
		v.b.mu.Lock()
		delete(v.b.views, v)
		v.b.mu.Unlock()
		if v.closeErr = v.close(); v.closeErr != nil {
			v.closeErr = fmt.Errorf("btrfs: close view of %s: %w", v.volume, v.closeErr)
		}
	})
	return v.closeErr
}

func (v *view) close() error {
	if v.snapshot == "" {
		return v.releaseVolume()
	}
	if err := v.dir.Close(); err != nil {
		return err
	}
	return v.b.destroy(v.b.dirs.views, v.snapshot)
}
