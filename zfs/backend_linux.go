package zfs

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/namelock"
)

// Options configures a Backend. The zero value is the default.
type Options struct {
	GID    int          // group that may pass through the directories of the home, besides root
	Logger *slog.Logger // nil: slog.Default
}

// Backend keeps volumes as the datasets directly below one dataset. It implements cowcommon.Backend.
//
// Several Backends may be open on the same home, in one process or in several. While one has a volume mounted, the
// others do not seal, rename or remove it. While one has a view of a volume, the others do not rename or remove it.
// A Backend that is alone when it opens cleans up the remains of a crash first. Otherwise it does so in the background, when
// the others have gone: a process that was killed counts until its last call has ended.
type Backend struct {
	layout
	root    string // the dataset above those of the volumes
	gid     int
	frozen  bool // opened for reading alone
	log     *slog.Logger
	ctx     context.Context // for steps that must end although their request was cancelled
	closing context.Context // ends when Close begins
	zfs     *control
	volumes index
	lock    *os.File

	presence  namelock.Lock
	recovered bool // it was alone when it opened, and has cleaned up
	recovery  recovery
	pending   pending

	mounts inuse.Table[namelock.Lock]    // datasets that are mounted, by volume, with their locks
	relied inuse.Table[namelock.Lock]    // volumes that are used for one step
	viewed inuse.Table[*mountedSnapshot] // snapshots that are mounted for views

	beginClose context.CancelFunc // ends closing
	closeOnce  func() error
}

var _ interface {
	cowcommon.Complete
	cowcommon.Adopter
	cowcommon.Settler
} = (*Backend)(nil)

// Open opens the dataset root as a Backend that keeps its mount points and locks below the directory home. It makes
// home if that is missing, and gives up when ctx ends. Unless another Backend has the same home open, Open destroys
// half-made datasets and unmounts mounts that a crash has left.
//
// Returns errdefs.ErrUnavailable if the pool is not imported or is suspended, or if the kernel does not answer at all. Returns
// errdefs.ErrFailedPrecondition if another home has the dataset open.
func Open(ctx context.Context, home, root string, opts Options) (*Backend, error) {
	return openHome(ctx, home, root, opts, false)
}

// OpenReadOnly opens the dataset root for reading alone, for the reason that why gives, such as a read-only pool. It
// neither cleans up nor writes in the pool. Methods that would change something return cowcommon.ErrReadOnly. The home,
// which may be in the pool, is not used: mount points and locks are below RunDir.
//
// A view of an unsealed volume is its dataset itself, mounted read-only. OpenZFS allows this mount unless the dataset
// is mounted writable.
func OpenReadOnly(ctx context.Context, home, root string, opts Options, why error) (cowcommon.Backend, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, err
	}
	b, err := openHome(ctx, runHome(home), root, opts, true)
	if err != nil {
		return nil, err
	}
	return cowcommon.ReadOnly(b, why), nil
}

// openBackend opens a dataset, for reading alone if why gives a reason.
func openBackend(ctx context.Context, home, root string, gid int, log *slog.Logger, why error) (cowcommon.Backend, error) {
	opts := Options{GID: gid, Logger: log}
	if why != nil {
		return OpenReadOnly(ctx, home, root, opts, why)
	}
	return Open(ctx, home, root, opts)
}

func openHome(ctx context.Context, home, root string, opts Options, frozen bool) (_ *Backend, err error) {
	b := &Backend{root: root, gid: opts.GID, frozen: frozen, log: opts.Logger, ctx: context.WithoutCancel(ctx)}
	b.closing, b.beginClose = context.WithCancel(b.ctx)
	b.closeOnce = sync.OnceValue(b.close)
	if b.log == nil {
		b.log = slog.Default()
	}
	defer func() {
		if err != nil {
			b.beginClose()
			err = errors.Join(fault.WrapWith("open home", home, "on "+root, err), b.leaveLater())
		}
	}()

	if home, err = filepath.Abs(home); err != nil {
		return nil, err
	}
	pool, _, _ := strings.Cut(root, "/")
	if b.zfs, err = openControl(ctx, pool); err != nil {
		return nil, err
	}
	if err := b.openBounded(ctx, func(ctx context.Context) error { return b.openFiles(ctx, home) }); err != nil {
		return nil, err
	}
	if !b.recovered {
		b.recoverLater()
	}
	return b, nil
}

// openBounded calls open, which opens the files of a home that may be in the pool. If the pool is suspended meanwhile, or ctx
// ends, open is left to itself, and its context ends. The files are closed when it has ended.
func (b *Backend) openBounded(ctx context.Context, open func(context.Context) error) error {
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	done := b.pending.begin()
	err := b.zfs.run(ctx, "open", b.zfs.patience, func(kernel) error {
		defer done()
		return open(opening)
	})
	var lost *lostError
	if errors.As(err, &lost) && lost.left {
		return lost.err
	}
	done() // also if open was not called
	return err
}

// openFiles makes the home and opens its files, cleans up if this Backend is alone, and lists the volumes.
func (b *Backend) openFiles(ctx context.Context, home string) (err error) {
	if b.layout, err = makeLayout(home, b.gid); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(home, counterName), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	b.volumes = index{ctx: b.ctx, zfs: b.zfs, root: b.root, counter: counter{file}, pending: &b.pending, log: b.log}
	if b.lock, err = homedir.Lock(ctx, b.home, b.recover); err != nil {
		return err
	}
	// Once more: for a moment after recover, the home was not locked.
	if err := b.ownUnlessFrozen(ctx, false); err != nil {
		return err
	}
	if b.presence, err = b.lockPresence(); err != nil {
		return err
	}
	if err := b.keepPrivate(b.gid); err != nil { // the Backend that was alone may be in another mount namespace
		return err
	}
	_, err = b.volumes.all(ctx)
	return err
}

// recover unmounts and destroys the remains of processes that are gone. No other Backend has the home open meanwhile.
// Remains that cannot be cleaned up are logged. They are in nobody's way, and the next start tries again.
func (b *Backend) recover(ctx context.Context) error {
	b.recovered = true
	if err := b.ownUnlessFrozen(ctx, true); err != nil {
		return err
	}
	if err := b.keepPrivate(b.gid); err != nil {
		return err
	}
	warn := b.warnLeft
	datasets, err := b.volumes.all(ctx)
	if err != nil {
		return err
	}
	b.unmountLeft(ctx, warn)
	if b.frozen {
		return nil
	}

	b.destroyHalfMade(ctx, datasets, warn)
	asides, err := b.asides(ctx, datasets)
	if err != nil {
		return err
	}
	origins := originsOf(datasets, asides)
	for name, d := range datasets {
		if strings.HasPrefix(name, stagingPrefix) {
			if err := b.discardStaged(ctx, name); err != nil {
				warn(b.datasetOf(name), err)
			} else {
				delete(datasets, name)
			}
			continue
		}
		if !d.own || !d.snapshotted {
			continue
		}
		leaves, err := b.leaves(ctx, name)
		if err != nil {
			return err
		}
		for _, snapshot := range leaves {
			if origins[snapshot] {
				continue
			}
			if err := b.discardUncloned(ctx, snapshot); err != nil { // a foreign dataset may be its clone
				warn(snapshot, err)
			}
		}
	}
	return b.destroyUnneeded(ctx, datasets, warn)
}

// leaves lists the snapshots of a volume that Cowshed takes for a while, by their full names.
func (b *Backend) leaves(ctx context.Context, name string) ([]string, error) {
	dataset := b.datasetOf(name)
	return read(ctx, b.zfs, "list", func(k kernel) (leaves []string, err error) {
		for d, err := range k.Snapshots(dataset) {
			if err != nil {
				return nil, err
			}
			snapshot := strings.TrimPrefix(d.Name, dataset+"@")
			if strings.HasPrefix(snapshot, viewPrefix) || strings.HasPrefix(snapshot, clonePrefix) {
				leaves = append(leaves, d.Name)
			}
		}
		return leaves, nil
	})
}

func (b *Backend) warnLeft(what string, err error) {
	b.log.Warn("zfs: remains of a crash cannot be cleaned up, and stay", "what", what, "error", err)
}

// discardStaged destroys a dataset in staging that was left.
func (b *Backend) discardStaged(ctx context.Context, name string) error {
	err := errors.Join(b.unmountDataset(ctx, b.datasetOf(name)), b.discardTree(ctx, b.datasetOf(name)))
	if err == nil {
		b.volumes.drop(name)
	}
	return err
}

// unmountDataset unmounts a dataset of which only the beginning was made: until it has its properties, it inherits a mount
// point, and zfs mounts it when the pool is imported.
func (b *Backend) unmountDataset(ctx context.Context, dataset string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "zfs" || m.Source != dataset, false
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		errs = append(errs, b.change(ctx, step{
			op:       "unmount",
			do:       func(kernel) error { return mountdir.Unmount(m.Mountpoint) },
			happened: func(context.Context) (bool, error) { return false, nil }, // it is looked for again
		}))
	}
	return errors.Join(errs...)
}

// unmountLeft unmounts the mounts that were left in graph and views, and deletes the locks of views.
func (b *Backend) unmountLeft(ctx context.Context, warn func(what string, err error)) {
	for _, dir := range []string{b.graph, b.views} {
		if err := b.unmountBelow(ctx, dir); err != nil {
			warn(dir, err)
		}
	}
	if err := b.zfs.ask(ctx, "unlock", func() error { return mountdir.RemoveFiles(b.locks) }); err != nil {
		warn(b.locks, err)
	}
}

// Close closes the open views, unmounts datasets that are mounted and not busy, and releases every descriptor. Volumes
// stay. A second Close does nothing.
//
// Close does not wait for a call of the kernel for which nobody waits any more. The home and the volumes of this call
// stay locked, as when a process is killed. The locks and all descriptors are released when the call has ended and its
// outcome is settled. If other Backends could not be told of a change yet, the home stays open until they have been
// told.
//
// Close takes at most a minute and some seconds. Returns errdefs.ErrUnavailable if the pool is suspended, or does not
// answer in that time: then mounts and snapshots of views are left over for the next Open, as after a crash.
func (b *Backend) Close() error { return b.closeOnce() }

func (b *Backend) close() error {
	b.beginClose()
	ctx, cancel := context.WithTimeoutCause(b.ctx, b.zfs.grace, fault.New(errdefs.ErrUnavailable, "the kernel takes longer than %s to close the views and mounts", b.zfs.grace))
	defer cancel()
	b.recovery.end(b.zfs.patience)
	viewsErr := b.viewed.CloseAll(func(_ string, m *mountedSnapshot) error { return b.unmountSnapshot(ctx, m) })
	mountsErr := b.mounts.CloseAll(func(name string, lock namelock.Lock) error {
		err := b.unlockMount(ctx, name, lock, false)
		if errors.Is(err, unix.EBUSY) {
			return nil // processes that live on keep it busy
		}
		return err
	})
	b.tellLater()
	return errors.Join(viewsErr, mountsErr, b.leaveLater())
}

// leaveLater leaves the home when the last activity in the background has ended, and at once if there is none.
func (b *Backend) leaveLater() error {
	return b.pending.close(b.leave, func(err error) {
		b.log.Warn("zfs: leaving the home after the last background call failed", "home", b.home, "error", err)
	})
}

// tellLater tells the other Backends in the background of changes that they have not been told of. The files of this one stay
// open until they have been told, or have gone.
func (b *Backend) tellLater() {
	if !b.volumes.untold() {
		return
	}
	done := b.pending.begin()
	go func() {
		defer done()
		if err := b.volumes.tellAll(b.ctx, b.presence.IsAlone); err != nil {
			b.volumes.warnUntold(err)
		}
	}()
}

// leave unmounts the mounts that all Backends share, unless another Backend has the home open, and closes the files.
func (b *Backend) leave() (err error) {
	if b.lock != nil {
		var alone bool
		if alone, err = flock.TryExclusive(b.lock); alone {
			err = b.release()
		}
	}
	return errors.Join(err, b.closeFiles())
}

func (b *Backend) closeFiles() error {
	var errs []error
	if b.lock != nil {
		errs = append(errs, flock.Release(b.lock))
	}
	if b.presence.File != nil {
		errs = append(errs, b.presence.Unlock(nil))
	}
	if b.volumes.counter.file != nil {
		errs = append(errs, b.volumes.counter.file.Close())
	}
	if b.zfs != nil {
		errs = append(errs, b.zfs.kernel.Close())
	}
	return errors.Join(errs...)
}

// datasetOf is the full name of a volume's dataset.
func (b *Backend) datasetOf(name string) string { return b.root + "/" + name }

// mountpoint is the directory on which a volume's dataset is mounted.
func (b *Backend) mountpoint(name string) string { return filepath.Join(b.graph, name) }

// volume looks a volume up. Returns errdefs.ErrNotFound if there is no volume of that name.
func (b *Backend) volume(ctx context.Context, name string) (dataset, error) {
	if err := cowcommon.CheckID(name); err != nil {
		return dataset{}, err
	}
	d, ok, err := b.look(ctx, name)
	if err != nil {
		return dataset{}, err
	}
	if !ok || !d.own {
		return dataset{}, fault.New(errdefs.ErrNotFound, "volume %s", name)
	}
	return d, nil
}

// look looks a dataset up. If the index lacks it, the kernel decides: the process that made it may have been killed
// before it told others.
func (b *Backend) look(ctx context.Context, name string) (d dataset, ok bool, err error) {
	d, ok, err = b.volumes.get(ctx, name)
	if ok || err != nil {
		return d, ok, err
	}
	there, err := b.zfs.exists(ctx, b.datasetOf(name))
	if err != nil || !there {
		return dataset{}, false, err
	}
	b.volumes.invalidate()
	return b.volumes.get(ctx, name)
}
