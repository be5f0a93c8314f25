// Package snapshotter gives containerd the copy-on-write volumes of any cowcommon.Backend: a Snapshotter for its
// snapshots, and a Differ that makes and applies layers natively.
//
// # Snapshots and volumes
//
// An active snapshot is a writable volume, cloned from the volume of its parent. Committing it seals that volume in
// place: nothing is copied or walked. A view is no volume at all but a read-only mount of its parent's sealed one;
// only a view without a parent is an empty volume.
//
// Keys, names and labels are containerd's, so they are kept in containerd's own MetaStore, the file metadata.db. The
// label [VolumeLabel], which no client sees, names the volume of a snapshot there.
//
// # Crashes
//
// The metadata names a volume before it is made, and says that a volume is doomed, durably, before it is destroyed.
// So at any moment the metadata tells the owner of each volume, or why it may go; and New completes operations that a
// crash has cut off. A volume that the metadata does not know is kept, whatever the reason: metadata.db is lost,
// older than the volumes, or of another home. It is [Lost]: no client sees it, and Restore or Discard decide about
// it. A snapshot to which a layer was being applied cannot be committed any more.
//
// Volumes are the snapshotter's by their names, provided that the backend's home is the snapshotter's alone: that
// home must not be shared with the graph driver or the command's store, nor with another snapshotter. Volumes with
// other names are left alone and reported. Package live may fork a volume, roll it back and keep snapshots of it, from
// another process: see Options.Layers.
//
// Each operation takes one write transaction of the metadata, or a few where something is unusual, and no volume
// operation runs inside one: clients that create and remove snapshots wait for each other only as long as bolt
// writes.
package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	bolt "go.etcd.io/bbolt"
	errbolt "go.etcd.io/bbolt/errors"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/boltfile"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// metadataName is the file in the snapshotter's root that holds the metadata.
const metadataName = "metadata.db"

// lockTimeout is how long New waits for another process to release the metadata.
const lockTimeout = time.Second

// Options configures a Snapshotter. The zero value limits nothing, and shares no roots.
type Options struct {
	// DefaultLimit limits active snapshots for UseContainer that have no label of their own. 0 bytes: no limit.
	DefaultLimit quota.Limit
	// BuildLimit limits snapshots for UseBuild that have no label of their own, and snapshots for UseUnpack: those
	// that make images, and not those that run them. 0 bytes: no limit.
	BuildLimit quota.Limit
	// Scope is the scope of limits from labels.
	Scope quota.Scope
	// RootStyle is the style of active snapshots for UseContainer that have no label of their own. DefaultRoot:
	// SnapshotRoot.
	RootStyle cowcommon.RootStyle
	// CountInodes makes Usage count the inodes that a snapshot adds. Neither btrfs nor the Backend counts them. So
	// they come from a native diff, at a cost in proportion to the changes, or from a walk if there is no parent.
	// Without CountInodes Usage.Inodes is 0.
	CountInodes bool
	// Layers records forks and snapshots of volumes, which other programs make in the Backend's home. The snapshotter removes
	// the snapshots of a volume with it. Forks stay, and are listed by no method. nil: there are none.
	Layers *live.Layers
	// Logger receives repairs, and faults that could not be repaired. nil: slog.Default.
	Logger *slog.Logger
}

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner over a Backend.
//
// It is safe for concurrent use. Errors are matched with errors.Is against containerd/errdefs, as the interface has
// them:
//
//   - ErrNotFound if a key, name or parent does not exist
//   - ErrAlreadyExists if a key or name exists
//   - ErrInvalidArgument if a parent is not committed, or a label cannot be read
//   - ErrFailedPrecondition if the kind of the snapshot forbids the operation, or its children do
//   - ErrNotImplemented if this filesystem has no such function
//
// An operation that fails changes nothing.
type Snapshotter struct {
	root     string
	backend  cowcommon.Backend
	mounter  cowcommon.SpecMounter // the same, or nil
	comparer *cowcommon.Comparer
	meta     *storage.MetaStore
	space    boltfile.Space
	reserve  spaceReserve
	partial  *partials

	commitTx func(*bolt.Tx) error // (*bolt.Tx).Commit, or in tests a function that fails

	opts Options
	log  *slog.Logger
	ctx  context.Context // of Close, which does not end with any request

	background *background

	beingMade inuse.Table[struct{}] // keys of snapshots that are written down, and are made or undone
	filling   inuse.Table[struct{}] // volumes that layers are applied to, or that are committed

	mu        sync.Mutex
	doomed    []string            // volumes that are to be destroyed; the metadata says so too
	reasons   map[string]string   // why volumes that are doomed could not be destroyed yet
	busy      map[string]struct{} // volumes that an operation is about to make
	unsettled []string            // volumes that were destroyed, and that a power cut may bring back
	stale     stale
	frozen    map[string]struct{} // keys of active snapshots that have a sealed volume
	lost      map[string]Lost     // by volume
	spoiled   map[string]struct{} // volumes with a part of a layer, which partial lists too
	offers    map[offerKey]offer  // volumes of other programs that wait for their Prepare

	cleaning chan struct{} // has an element while Cleanup runs, for which others than Cleanup do not wait
	wake     chan struct{} // has an element if RetryCleanup is to look for work

	notShared atomic.Bool // others cannot mount volumes of SharedRoot here

	measured sync.Map // snapshots.Usage of committed snapshots that had to be counted, by volume

	closeOnce sync.Once
	closeErr  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter whose metadata is in the directory root, which it makes if need be, and brings metadata
// and volumes into agreement. It gives up when ctx ends. backend must be the snapshotter's alone; Close closes it.
//
// Returns errdefs.ErrUnavailable if another process has the snapshotter open, and errdefs.ErrDataLoss if the metadata
// is damaged: see Repair. Returns errdefs.ErrFailedPrecondition if all volumes that the metadata names are missing,
// so that the backend is probably a wrong one.
func New(ctx context.Context, root string, backend cowcommon.Backend, opts Options) (*Snapshotter, error) {
	s := newSnapshotter(ctx, root, backend, opts)
	if s.mounter == nil {
		return nil, openError(root, fault.New(errdefs.ErrNotImplemented, "others cannot mount volumes of a %T", backend))
	}
	if err := s.mounter.CheckMountSpec(); err != nil {
		return nil, openError(root, err)
	}
	if err := s.openAll(ctx); err != nil {
		return nil, openError(root, err)
	}
	return s, nil
}

// newSnapshotter makes one whose metadata is not open.
func newSnapshotter(ctx context.Context, root string, backend cowcommon.Backend, opts Options) *Snapshotter {
	s := &Snapshotter{
		root: root, backend: backend, opts: opts, log: opts.Logger, ctx: context.WithoutCancel(ctx),
		reserve:  spaceReserve{path: filepath.Join(root, reserveName)},
		commitTx: (*bolt.Tx).Commit,

		background: newBackground(),

		reasons:  make(map[string]string),
		cleaning: make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
		busy:     make(map[string]struct{}),
		frozen:   make(map[string]struct{}),
		lost:     make(map[string]Lost),
		spoiled:  make(map[string]struct{}),
		offers:   make(map[offerKey]offer),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.mounter, _ = cowcommon.As[cowcommon.SpecMounter](backend)
	s.comparer = cowcommon.NewComparer(backend, user.IdentityMapping{}, s.log)
	return s
}

func openError(root string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errbolt.ErrTimeout) {
		err = fault.New(errdefs.ErrUnavailable, "another process has it open: %w", err)
	}
	return fault.Wrap("open snapshotter", root, typed(err))
}

func (s *Snapshotter) openAll(ctx context.Context) error {
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return err
	}
	var err error
	if s.partial, err = openPartials(s.root, s.backend); err != nil {
		return err
	}
	if err := s.openMeta(); err != nil {
		return err
	}
	s.reserve.keep()
	if err := s.recover(ctx); err != nil {
		return errors.Join(err, s.meta.Close())
	}
	return nil
}

func withLockTimeout(o *bolt.Options) error {
	o.Timeout = lockTimeout
	return nil
}

// Close closes the metadata and the backend. Snapshots stay. Volumes of removed snapshots that Cleanup has not
// destroyed stay until the next New. Closing twice does nothing.
func (s *Snapshotter) Close() error {
	s.closeOnce.Do(func() {
		s.background.end()
		if err := s.forgetStale(); err != nil {
			s.log.Warn("snapshotter: metadata could not be written", "error", err)
		}
		s.closeErr = fault.Wrap("close snapshotter", s.root, errors.Join(s.meta.Close(), s.backend.Close()))
	})
	return s.closeErr
}

// wrap adds the operation and its object to an error.
func wrap(operation, key string, err error) error {
	return fault.Wrap(operation, key, typed(err))
}
