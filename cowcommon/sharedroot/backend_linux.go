package sharedroot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/overlaysource"
	"github.com/cowshed/cowshed/internal/sharedmark"
)

// docs/reference/on-disk-format.md specifies this name and indexName.
const rootsName = "roots" // overlays are mounted here

// runDir has the mount points of homes that are opened for reading alone. They go when the machine stops.
const runDir = "/run/cowshed/read-only-roots"

// inner is the Backend inside.
type inner interface {
	cowcommon.Backend
	// Alone calls do with the open root of a writable volume that nobody uses. Others wait for its end before they use
	// the volume. Returns fault.ErrInUse if somebody uses the volume, and fault.ErrSealed if it is sealed.
	Alone(ctx context.Context, name string, do func(root *os.File) error) error
	// Peek calls do with the open root of a volume, used or not. That is no use because of which a claim in this process
	// fails.
	Peek(ctx context.Context, name string, do func(root *os.File) error) error
}

// pathKeeper is an inner Backend that may have each volume at a path that everybody in its mount namespace can use,
// mounted or not.
type pathKeeper interface {
	// KeepsPaths reports whether the result of Mount stays valid without the mount.
	KeepsPaths() bool
}

// cloneSyncer is an inner Backend whose Clone may write out the home.
type cloneSyncer interface {
	// CloneSyncs reports whether Clone makes earlier changes in the home survive a power cut.
	CloneSyncs() bool
}

// Backend is a Backend whose volumes may have shared roots. It implements cowcommon.Backend and RootStyler, and has the
// other optional interfaces that the Backend inside has.
//
// Several Backends may be open on the same home, in one process or several. They exclude each other by the bytes of the
// home's lock file. A volume's byte is locked while its style is changed or relied on.
type Backend struct {
	cowcommon.Backend // the one inside
	home              string
	opts              Options
	log               *slog.Logger
	ctx               context.Context // for cleaning up, which the end of no request stops
	keepsPaths        bool            // as pathKeeper says
	cloneSyncs        bool            // as cloneSyncer says

	index index
	roots string // the directory of mount points
	locks string // the file whose bytes are the locks
	uses  string // the file whose bytes are the locks of mount points

	readers string // the directory of mount points of Backends that are open for reading alone

	open *namelock.Lock // held while the Backend is open; nil for reading alone

	mounts   inuse.Table[*mounted] // by volume
	views    inuse.Table[*overlay] // overlays for one view each, by name in the directory of mount points
	overlays *mounttable.Filesystem
	self     overlaysource.Home // as the sources of overlays name it
	removed  removed

	makeRoots  func() error // makes the directory of mount points, once
	tryOverlay func() error // finds out features, once
	features   features
	closeOnce  func() error
}

var _ interface {
	cowcommon.RootStyler
	cowcommon.Sealer
	cowcommon.Renamer
	cowcommon.SpecMounter
	cowcommon.Hinter
	cowcommon.Limiter
	cowcommon.ChangesSizer
	cowcommon.UnusedReader
	cowcommon.Streamer
	cowcommon.Keeper
	cowcommon.Adopter
	cowcommon.Forker
} = (*Backend)(nil)

// New lets the volumes of a Backend, which has that home, have shared roots. It completes changes of style that a crash
// has interrupted, and unmounts overlays that nobody uses, unless another process has the same home open. Close closes
// the Backend inside too. If New fails, the Backend inside stays open.
func New(ctx context.Context, in cowcommon.Backend, home string, opts Options) (cowcommon.Backend, error) {
	b := &Backend{Backend: in, opts: opts, log: opts.Logger, ctx: context.WithoutCancel(ctx)}
	if b.log == nil {
		b.log = slog.Default()
	}
	if k, ok := cowcommon.As[pathKeeper](in); ok {
		b.keepsPaths = k.KeepsPaths()
	}
	if s, ok := cowcommon.As[cloneSyncer](in); ok {
		b.cloneSyncs = s.CloneSyncs()
	}
	b.makeRoots = untilDone(b.makeMountPoints)
	b.tryOverlay = untilDone(b.probe)
	b.closeOnce = sync.OnceValue(b.close)
	err := fault.Wrap("open shared roots of home", home, b.start(ctx, home))
	if _, ok := cowcommon.As[cowcommon.Exchanger](in); ok {
		return &exchanger{b}, err
	}
	return b, err
}

func (b *Backend) start(ctx context.Context, home string) (err error) {
	if b.home, err = filepath.Abs(home); err != nil {
		return err
	}
	if b.home, err = filepath.EvalSymlinks(b.home); err != nil { // as the kernel lists mount points
		return err
	}
	b.roots, b.index.dir, b.locks = filepath.Join(b.home, rootsName), filepath.Join(b.home, indexName), homedir.LockFile(b.home)
	b.uses = b.locks
	sum := sha256.Sum256([]byte(b.home))
	b.readers = filepath.Join(runDir, hex.EncodeToString(sum[:8]))
	if b.opts.ReadOnly {
		b.roots = b.readers
		b.uses = usesOf(b.readers)
	}
	dir, err := os.Open(b.home)
	if err != nil {
		return err
	}
	defer dir.Close()
	if b.self, err = overlaysource.HomeOf(dir); err != nil {
		return err
	}
	if b.overlays, err = mounttable.New(int(dir.Fd())); err != nil {
		return err
	}
	b.sweepAll()
	if b.opts.ReadOnly {
		return nil
	}
	if err := b.turnOn(); err != nil {
		return err
	}
	lock, alone, err := namelock.Either(ctx, b.locks, openKey)
	if err != nil {
		return err
	}
	if alone {
		if err = b.recover(ctx); err == nil {
			err = lock.Share()
		}
		if err != nil {
			return errors.Join(err, lock.Unlock(nil))
		}
	}
	b.open = &lock
	return nil
}

// Keys of locks, none of which is the name of a volume.
const openKey = "/open"

// rootsKey is the key of the lock for making the directory of mount points.
const rootsKey = "/roots"

// mountKey is the key of the lock that a process has while it uses the overlay on a mount point.
func mountKey(name string) string { return "/mounted/" + name }

// Unwrap returns the Backend inside.
func (b *Backend) Unwrap() cowcommon.Backend { return b.Backend }

// exclusive and shared are locks of names.
func exclusive(name string) namelock.Want { return namelock.Want{Name: name, Exclusive: true} }
func shared(name string) namelock.Want    { return namelock.Want{Name: name} }

// lock locks the styles of volumes: exclusively to change them, or shared to rely on them.
func (b *Backend) lock(ctx context.Context, wants ...namelock.Want) (unlock func(), err error) {
	if b.opts.ReadOnly {
		return func() {}, nil
	}
	release, err := namelock.All(ctx, b.locks, wants...)
	if err != nil {
		return nil, err
	}
	return func() {
		if err := release(); err != nil {
			b.log.Warn("shared roots: closing a lock failed", "error", err)
		}
	}, nil
}

// makeMountPoints makes the directory of mount points.
func (b *Backend) makeMountPoints() error {
	if b.opts.ReadOnly {
		if err := os.MkdirAll(filepath.Dir(b.roots), 0o711); err != nil {
			return err
		}
	}
	if err := homedir.Make(b.roots, b.opts.GID); err != nil {
		return err
	}
	unlock, err := namelock.All(b.ctx, b.uses, exclusive(rootsKey))
	if err != nil {
		return err
	}
	return errors.Join(mountdir.KeepPrivate(b.roots, b.opts.GID), unlock())
}

// untilDone returns a function that calls do, until a call has succeeded.
func untilDone(do func() error) func() error {
	var mu sync.Mutex
	done := false
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return nil
		}
		err := do()
		done = err == nil
		return err
	}
}

// supported finds out whether overlays work with directories of the volumes' filesystem. Overlays that are only read
// depend on no feature.
func (b *Backend) supported() (features, error) {
	if b.opts.ReadOnly {
		return features{}, nil
	}
	if err := b.tryOverlay(); err != nil {
		return features{}, err
	}
	return b.features, nil
}

func (b *Backend) probe() (err error) {
	if b.keepsPaths {
		b.features, err = probe(b.home)
		return err
	}
	tree, err := cowcommon.Scratch(b.ctx, b.Backend, func(dir string) (err error) {
		b.features, err = probe(dir)
		return err
	})
	if err == nil {
		err = tree.Close()
	}
	return err
}

// recover cleans up after a crash. No other Backend has the home open meanwhile.
func (b *Backend) recover(ctx context.Context) error {
	if err := errors.Join(b.removeScratch(), mountdir.RemoveFiles(b.roots)); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.log.Warn("shared roots: mount points are left over", "error", err)
	}
	if err := b.index.clean(); err != nil {
		return err
	}
	b.restoreLimits(ctx)
	names, err := b.index.all()
	if err != nil {
		return err
	}
	if err := b.forgetGone(ctx, names); err != nil { // a crash came before the volume was made, or after it was removed
		return err
	}
	if !b.keepsPaths {
		return nil // looking costs a mount, so the first user looks
	}
	for _, name := range names {
		s, _, err := b.look(ctx, name)
		switch {
		case err == nil && s == stateFolding:
			err = b.fold(ctx, name)
		case err == nil && s == stateNone: // a crash came before or after the change
			err = b.forgetOutdated(ctx, name)
		}
		if err != nil && !isGone(err) {
			b.log.Warn("shared roots: a change of root style cannot be completed yet", "volume", name, "error", err)
		}
	}
	return nil
}

// usesOf is the file whose bytes are the locks of mount points in readers.
func usesOf(readers string) string { return readers + ".lock" }

// sweepAll unmounts the overlays that processes have left when they were killed.
func (b *Backend) sweepAll() {
	err := sweep(b.roots, b.uses, b.isLeft)
	if b.roots != b.readers {
		err = errors.Join(err, sweep(b.readers, usesOf(b.readers), b.isLeft))
	}
	if err != nil {
		b.log.Warn("shared roots: a mount that is no longer used cannot be unmounted, and stays", "error", err)
	}
}

// isLeft reports whether the overlay of a killed process can go. It is no layer of another overlay, which would keep its
// upper in use unseen.
func (b *Backend) isLeft(m *mountinfo.Info) bool {
	over, err := b.overlays.UsesOf(m.Mountpoint, nil)
	return err == nil && len(over) == 0 && b.isUnused(m.Mountpoint)
}

// isUnused reports whether the overlay that is mounted on a mount point is mounted at no other place. A container may have
// outlived the process that mounted its root. Namespaces that were copied have the mount at the same place. The kernel
// unmounts such copies when the mount point is removed.
func (b *Backend) isUnused(point string) bool {
	name := filepath.Base(point)
	if strings.HasPrefix(name, viewPrefix) {
		return true
	}
	uses, err := b.overlays.UsesOf(filepath.Join(b.home, name, sharedmark.Dir), b.self.Volume(name).IsUpper())
	elsewhere := func(u mounttable.Use) bool { return u.Mountpoint != point }
	return err == nil && !slices.ContainsFunc(uses, elsewhere)
}

// Close closes all open views, and unmounts those overlays that nobody else has mounted. Volumes stay. Closing twice
// does nothing.
func (b *Backend) Close() error { return b.closeOnce() }

func (b *Backend) close() error {
	if names := b.removed.take(1); len(names) > 0 {
		b.forgetRemoved(names)
	}
	errs := []error{
		b.views.CloseAll(func(_ string, o *overlay) error { return o.close() }),
		b.mounts.CloseAll(func(name string, m *mounted) error {
			return b.release(name, m, func() bool { return b.isUnused(b.point(name)) })
		}),
	}
	errs = append(errs, b.Backend.Close())
	if b.open != nil {
		errs = append(errs, b.open.Unlock(func() error { return mountdir.Release(b.roots) }))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close shared roots: %w", err)
	}
	return nil
}
