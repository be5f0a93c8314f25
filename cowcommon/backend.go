// Package cowcommon has the parts that all copy-on-write backends share: the Backend interface, by which a filesystem
// can be used, and operations on volumes of any Backend.
package cowcommon

import (
	"context"
	"iter"
	"time"

	"github.com/cowshed/cowshed/quota"
)

// Backend keeps copy-on-write volumes on one filesystem.
//
// A volume is a directory tree with a name. It is writable until another volume is cloned from it; then it is sealed:
// read-only for good, so that an image cannot change under its containers. A volume that is mounted when it is cloned
// is cloned as it is at that moment, and stays writable.
//
// A volume is in use while any process holds it. It is also in use while it, a directory of it, or an overlay with it
// as a layer is mounted. That holds in every mount namespace, and for a mount that another mount covers. On ZFS an open
// file keeps its volume in use. On btrfs it does not: the process keeps its file, as with a deleted one, and goes on
// writing to a sealed volume. A volume in use is not sealed, renamed or removed. The error names the users if the
// kernel tells.
//
// Methods are safe for concurrent use, and each that changes something is atomic: after a crash the volume is
// complete, or it does not exist. An acknowledged change survives a power cut, except that a removed volume may come
// back whole, until a later Create or Clone has returned. An operation that fails for want of space has unix.ENOSPC
// in its error, or at the limit of a volume unix.EDQUOT, and leaves nothing.
//
// Errors are matched with errors.Is against github.com/containerd/errdefs: ErrNotFound, ErrAlreadyExists,
// ErrInvalidArgument, ErrFailedPrecondition (the volume is in use or sealed), ErrNotImplemented (this filesystem or
// kernel cannot).
//
// Functions of some filesystems are interfaces of their own: Sealer, Renamer, SpecMounter, Hinter, Limiter, Streamer,
// Identifier, Keeper, RootStyler, Examiner, Scratcher, Retainer, Leaver, Adopter, Settler, Forker, Exchanger, Placer,
// ChangesSizer, UnusedReader and Sharer. As finds them.
type Backend interface {
	// Create makes an empty writable volume. Its root directory is 0755 and owned by opts.UID and GID.
	Create(ctx context.Context, name string, opts VolumeOptions) error
	// Clone makes name a writable copy of source as it is now, and seals source unless it is mounted. If it fails, source
	// is as it was, unless another call came to depend on the seal meanwhile.
	Clone(ctx context.Context, name, source string, opts VolumeOptions) error
	// Remove destroys a volume and everything inside it, on a full filesystem too. Removing an absent volume is not
	// an error. If Remove fails, the volume is as before, or it is gone and the error is about remains that no method
	// finds. Clones of the volume do not matter, and stay complete. The data that they share with it stays until the
	// last of them is removed. Returns ErrFailedPrecondition if the volume is in use, or if a view of it is open. On ZFS
	// it does so too if other programs have taken a snapshot of the volume, or made a dataset below it.
	Remove(ctx context.Context, name string) error

	// Mount makes a volume's tree reachable and returns the absolute path of its root. Mounts are
	// counted: each needs its Unmount. label is an SELinux mount label or "".
	Mount(ctx context.Context, name, label string) (dir string, err error)
	// Unmount releases one Mount. Without a matching Mount it does nothing.
	Unmount(ctx context.Context, name string) error

	// View opens the tree of a volume read-only, frozen at this moment. The caller closes it.
	View(ctx context.Context, name string) (View, error)

	// Stat describes one volume.
	Stat(ctx context.Context, name string) (Volume, error)
	// Volumes lists all volumes in no particular order. Parents are given where they are known.
	Volumes(ctx context.Context) iter.Seq2[Volume, error]
	// Sync makes everything written to a volume so far survive a power cut.
	Sync(ctx context.Context, name string) error

	// Status describes the backend and its filesystem as they are now, for people.
	Status(ctx context.Context) [][2]string
	// Close releases the resources of the backend. Volumes and the mounts of others stay.
	Close() error
}

// View is a read-only tree that does not change while it is open.
type View interface {
	// Dir is the absolute path of the root of the tree.
	Dir() string
	// Close releases the view. Closing twice does nothing.
	Close() error
}

// VolumeOptions says how a volume is made.
type VolumeOptions struct {
	UID, GID   int         // owner of an empty volume's root directory, as host ids
	Limit      quota.Limit // the zero Limit: none
	MountLabel string      // SELinux label of the tree, or ""
	RootStyle  RootStyle   // of a clone; a Backend without shared roots returns ErrNotImplemented for SharedRoot
}

// Volume describes a volume.
type Volume struct {
	Name    string
	Parent  string // the volume it was cloned from, "" if none or if that was removed
	Sealed  bool
	Limit   quota.Limit
	Created time.Time
	// RootStyle is given by Stat alone, and is DefaultRoot from a Backend without shared roots.
	RootStyle RootStyle
	// Details are the backend's own facts by name, for people: subvolume id, dataset, path.
	Details map[string]string
}
