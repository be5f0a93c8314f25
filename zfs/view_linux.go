package zfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/poll"
	"github.com/cowshed/cowshed/internal/staging"
)

// view is one use of a mounted snapshot. Views of a sealed volume share the mount of the snapshot that seals it: in
// OpenZFS, mounts and unmounts of one snapshot at the same time disturb each other. view is no cowcommon.LiveView:
// OpenZFS caches blocks, and snapshots share these.
type view struct {
	b        *Backend
	volume   string
	snapshot string // full name; "" if the view is the dataset itself, to which nobody writes
	key      string // in Backend.viewed; "" likewise
	dir      string
	close    func() error // once
}

// mountedSnapshot is a snapshot that is mounted for views: the snapshot that seals a volume, or a snapshot for one view
// alone.
//
// Its lock file and the directory on which it is mounted have the same name. A snapshot that was taken for a view has
// this name too, below the dataset of the Backend. So a process that finds the lock free can remove all three. If the
// snapshot has no lock and the process is killed, they go at the next open of the home.
type mountedSnapshot struct {
	name      string // of the snapshot, in full
	temporary bool   // it was taken for a view
	dir       string
	lock      *os.File     // nil: there was no space for it
	unlock    func() error // of a dataset in staging; nil: it is a snapshot
}

// View mounts the snapshot that seals a volume. Of an unsealed volume it takes a snapshot, and mounts it.
func (b *Backend) View(ctx context.Context, name string) (cowcommon.View, error) {
	v, err := b.view(ctx, name)
	if err != nil {
		return nil, fault.Wrap("view volume", name, err)
	}
	return v, nil
}

func (b *Backend) view(ctx context.Context, name string) (_ *view, err error) {
	if _, err := b.volume(ctx, name); err != nil {
		return nil, err
	}
	done, err := b.rely(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.after(err, done)) }()
	isSealed, err := b.isSealed(ctx, name)
	if err != nil {
		return nil, err
	}
	key := name + "@" + sealName
	switch {
	case isSealed:
	case b.frozen:
		return b.viewFrozen(ctx, name)
	default:
		key = staging.Name(name + "@" + viewPrefix)
	}
	m, err := b.viewed.Acquire(ctx, key, inuse.Viewed, func() (*mountedSnapshot, error) {
		if isSealed {
			return b.mountSeal(ctx, name)
		}
		return b.mountTemporary(ctx, name, key)
	})
	if err != nil {
		return nil, err
	}
	return b.newView(view{b: b, volume: name, snapshot: m.name, key: key, dir: m.dir}), nil
}

func (b *Backend) newView(v view) *view {
	v.close = sync.OnceValue(v.release)
	return &v
}

// viewFrozen views a volume to which nobody writes: the view is the dataset itself.
func (b *Backend) viewFrozen(ctx context.Context, name string) (*view, error) {
	if err := b.mount(ctx, name, "", inuse.Viewed); err != nil {
		return nil, err
	}
	return b.newView(view{b: b, volume: name, dir: b.mountpoint(name)}), nil
}

// mountSeal mounts the snapshot that seals a volume.
func (b *Backend) mountSeal(ctx context.Context, name string) (*mountedSnapshot, error) {
	m, err := b.lockSnapshot(ctx, staging.Name(name+"@"+sealName+"-"))
	if err != nil {
		return nil, err
	}
	m.name = b.sealOf(name)
	return m, b.mountSnapshot(ctx, m)
}

// mountTemporary takes a snapshot of a volume under the name lockName, and mounts it.
func (b *Backend) mountTemporary(ctx context.Context, volume, lockName string) (*mountedSnapshot, error) {
	m, err := b.takeTemporary(ctx, volume, lockName)
	if err != nil {
		return nil, err
	}
	return m, b.mountSnapshot(ctx, m)
}

// takeTemporary takes a snapshot of a volume under the name lockName.
func (b *Backend) takeTemporary(ctx context.Context, volume, lockName string) (*mountedSnapshot, error) {
	m, err := b.lockSnapshot(ctx, lockName)
	if err != nil {
		return nil, err
	}
	m.name, m.temporary = b.datasetOf(lockName), true
	discard := func(ctx context.Context) error { return b.discard(ctx, m.name) }
	if err := b.snapshot(ctx, volume, m.name, discard); err != nil {
		return nil, errors.Join(err, b.after(err, func() error {
			ctx, cancel := b.ending()
			defer cancel()
			return b.unlockView(ctx, m.lock, true)
		}))
	}
	return m, nil
}

// lockSnapshot takes the lock of a snapshot that is to be taken or mounted, if there is space for the lock.
func (b *Backend) lockSnapshot(ctx context.Context, lockName string) (*mountedSnapshot, error) {
	lock, ok, err := b.lockView(ctx, lockName)
	if fault.IsFull(err) {
		err, ok = nil, true
	}
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fault.New(errdefs.ErrAlreadyExists, "lock %s", lockName)
	}
	return &mountedSnapshot{dir: filepath.Join(b.views, lockName), lock: lock}, nil
}

// mountSnapshot mounts a snapshot. If that fails, it gives back the lock, and destroys the snapshot if it was taken for
// a view.
func (b *Backend) mountSnapshot(ctx context.Context, m *mountedSnapshot) error {
	err := b.mountWaiting(ctx, m.name, m.dir, unix.MS_RDONLY, "")
	if err != nil {
		b.volumes.invalidate() // it should have been there
		err = errors.Join(err, b.after(err, func() error { return b.endView(m) }))
	}
	return err
}

// snapshot takes a snapshot of a volume as it is now. undo destroys the snapshot if it is taken after the caller was told
// that the outcome is not known.
func (b *Backend) snapshot(ctx context.Context, volume, snapshot string, undo func(context.Context) error) error {
	if b.mounts.Held(volume) > 0 {
		// Else the snapshot would lack data that programs have written through memory maps.
		err := b.syncMounted(ctx, volume)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it was unmounted meanwhile, which writes everything back
			return err
		}
	}
	err := b.act(ctx, step{
		op:       "snapshot",
		do:       func(k kernel) error { return k.Snapshot(snapshot) },
		happened: b.isThere(snapshot),
		undo:     undo,
	})
	return b.explainMissing(ctx, err, volume)
}

// Dir is the absolute path of the view's root.
func (v *view) Dir() string { return v.dir }

// Close ends this use of the snapshot. After the last use the snapshot is unmounted, and destroyed if it was taken for
// a view.
func (v *view) Close() error { return v.close() }

func (v *view) release() (err error) {
	if v.key == "" {
		err = v.b.unmount(v.volume, inuse.Viewed)
	} else {
		err = v.b.viewed.Release(v.key, inuse.Viewed, v.b.endView)
	}
	return fault.Wrap("close view of volume", v.volume, err)
}

// endView is unmountSnapshot with the time that the end of a use has.
func (b *Backend) endView(m *mountedSnapshot) error {
	ctx, cancel := b.ending()
	defer cancel()
	return b.unmountSnapshot(ctx, m)
}

// unmountSnapshot unmounts a snapshot, destroys it if it was taken for a view, and gives up its lock.
func (b *Backend) unmountSnapshot(ctx context.Context, m *mountedSnapshot) error {
	err := b.unmountAt(ctx, m.dir, true)
	if isLeft(err) {
		return errors.Join(err, b.after(err, func() error {
			ctx, cancel := b.ending()
			defer cancel()
			return b.endSnapshot(ctx, m, nil)
		}))
	}
	return b.endSnapshot(ctx, m, err)
}

// endSnapshot is unmountSnapshot after the unmount, which has failed with err unless that is nil.
func (b *Backend) endSnapshot(ctx context.Context, m *mountedSnapshot, err error) error {
	if err == nil && m.temporary {
		err = b.destroySnapshot(ctx, m.name)
	}
	gone, left := err == nil, isLeft(err)
	err = errors.Join(err, b.after(err, func() error {
		if left { // ctx has ended
			var cancel context.CancelFunc
			ctx, cancel = b.ending()
			defer cancel()
		}
		err := b.unlockView(ctx, m.lock, gone)
		if m.unlock != nil {
			err = errors.Join(err, m.unlock())
		}
		return err
	}))
	if isRefused(err) {
		// Files of it that are still open keep it busy. Its lock file stays, so that the snapshot goes later: with the
		// volume, or when the home is next opened.
		b.log.Debug("zfs: the snapshot of a view cannot be destroyed yet", "snapshot", m.name, "error", err)
		return nil
	}
	return err
}

// destroySnapshot destroys the snapshot of a view, and waits a while if the snapshot is busy.
func (b *Backend) destroySnapshot(ctx context.Context, snapshot string) error {
	return poll.WhileBusy(ctx, patient(snapshotBusyFor), func() (busy bool, err error) {
		err = b.discard(ctx, snapshot)
		return isRefused(err), err
	})
}

// deadViews are views of a volume whose processes are gone, and views that could not be removed when they were closed.
type deadViews struct {
	locks     []string // paths of their lock files, which nobody holds
	snapshots []string // snapshots that were taken for them
}

// endDeadViews unmounts the dead views of a volume. Returns errdefs.ErrFailedPrecondition if another view is open.
func (b *Backend) endDeadViews(ctx context.Context, name string) (dead deadViews, err error) {
	entries, err := b.files(ctx, b.locks)
	if err != nil {
		return deadViews{}, err
	}
	for _, entry := range entries {
		snapshot, ok := strings.CutPrefix(entry.Name(), name+"@")
		if !ok {
			continue
		}
		lock, ok, err := b.lockView(ctx, entry.Name())
		if err != nil {
			return deadViews{}, err
		}
		if !ok {
			return deadViews{}, fault.New(fault.ErrInUse, "a view of it is open")
		}
		dead.locks = append(dead.locks, lock.Name())
		if strings.HasPrefix(snapshot, viewPrefix) {
			dead.snapshots = append(dead.snapshots, b.datasetOf(entry.Name()))
		}
		err = b.unmountAt(ctx, filepath.Join(b.views, entry.Name()), true)
		releaseErr := b.after(err, func() error { return flock.Release(lock) })
		if err := errors.Join(err, releaseErr); err != nil {
			return deadViews{}, err
		}
	}
	return dead, nil
}

// forgetViews removes the lock files of views that are gone for good.
func (b *Backend) forgetViews(ctx context.Context, d deadViews) error {
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	return b.zfs.ask(ctx, "unlock", func() error {
		var errs []error
		for _, lock := range d.locks {
			if err := os.Remove(lock); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}
