package btrfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/internal/overlaysource"
	"github.com/cowshed/cowshed/quota"
)

// Options configures a Backend. The zero value is the default.
type Options struct {
	GID    int          // group that may pass through the layout's directories, besides root
	Quota  quota.Policy // which quota mode may be used, and turned on at the first limit
	Scope  quota.Scope  // scope of the limits that moby's driver recorded
	Logger *slog.Logger // nil: slog.Default
}

// Backend keeps volumes as the subvolumes of one directory. It implements cowcommon.Backend.
//
// Several Backends may be open on the same home, in one process or several. No Backend seals, renames or removes a
// volume that another holds mounted or in view. Only the first Backend that opens the home cleans up after a crash.
type Backend struct {
	home     string
	opts     Options
	readOnly bool // it was opened for reading alone
	log      *slog.Logger
	ctx      context.Context // for cleaning up, which the end of no request stops

	fs     *os.File // home, for calls that concern the whole filesystem
	fsUUID btrfsctl.UUID
	lock   *os.File
	dirs   dirs
	quotas *quota.Qgroups
	mounts *mounttable.Filesystem
	self   overlaysource.Home // as the sources of overlays name it

	records string // the directory in which moby's driver recorded limits, "" if there is none

	uses      inuse.Table[*subvolume] // volumes that are mounted or in view, by name
	snapshots inuse.Table[*snapshot]  // snapshots for one view each, by name in the directory views

	leftovers leftovers

	closeOnce func() error
}

var _ interface {
	cowcommon.Complete
	cowcommon.Forker
	cowcommon.Exchanger
} = (*Backend)(nil)

// Open opens the directory home, on btrfs, as a Backend. It makes home, as a subvolume of its own, and the layout below
// it where they are missing. It destroys volumes that a crash has left half-made or half-removed, unless another
// process has the same home open. Open gives up when ctx ends.
func Open(ctx context.Context, home string, opts Options) (*Backend, error) {
	return openHome(ctx, home, opts, false)
}

// OpenReadOnly opens the existing directory home for reading alone, for the reason that why gives, such as a read-only
// filesystem. The Backend makes, cleans up and writes nothing. Methods that would change something return
// cowcommon.ErrReadOnly. So does View of a volume that is not sealed, if others can write to the filesystem.
func OpenReadOnly(ctx context.Context, home string, opts Options, why error) (cowcommon.Backend, error) {
	b, err := openHome(ctx, home, opts, true)
	if err != nil {
		return nil, err
	}
	return cowcommon.ReadOnly(b, why), nil
}

// openBackend opens home with the driver's options. If why gives a reason, it opens home for reading alone.
func openBackend(ctx context.Context, home string, gid int, o driverOptions, log *slog.Logger, why error) (cowcommon.Backend, error) {
	opts := Options{GID: gid, Quota: o.Policy, Scope: o.Scope, Logger: log}
	if why != nil {
		return OpenReadOnly(ctx, home, opts, why)
	}
	return Open(ctx, home, opts)
}

func openHome(ctx context.Context, home string, opts Options, readOnly bool) (_ *Backend, err error) {
	b := &Backend{opts: opts, readOnly: readOnly, log: opts.Logger, ctx: context.WithoutCancel(ctx)}
	b.closeOnce = sync.OnceValue(b.close)
	if b.log == nil {
		b.log = slog.Default()
	}
	defer func() {
		if err != nil {
			err = errors.Join(fault.Wrap("open home", home, err), b.closeFiles())
		}
	}()

	if b.home, err = filepath.Abs(home); err != nil {
		return nil, err
	}
	if !readOnly {
		if err := makeHome(b.home, opts.GID); err != nil {
			return nil, err
		}
	}
	if b.fs, err = os.OpenFile(b.home, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	if stub, err := isStub(b.fs); err != nil || stub {
		if err == nil {
			err = stubError(b.fs)
		}
		return nil, err
	}
	if b.self, err = overlaysource.HomeOf(b.fs); err != nil {
		return nil, err
	}
	if b.mounts, err = mounttable.New(int(b.fs.Fd())); err != nil {
		return nil, err
	}
	if b.fsUUID, err = btrfsctl.FilesystemUUID(int(b.fs.Fd())); err != nil {
		return nil, fmt.Errorf("filesystem UUID: %w", err)
	}
	if err := b.dirs.open(b.home, opts.GID, readOnly); err != nil {
		return nil, err
	}
	if b.quotas, err = quota.OpenQgroups(b.home, opts.Quota); err != nil {
		return nil, err
	}
	if records := filepath.Join(b.home, quotasName); isDirectory(records) {
		b.records = records
	}
	if readOnly {
		b.lock, err = homedir.LockToRead(ctx, b.home)
	} else {
		b.lock, err = homedir.Lock(ctx, b.home, b.recover)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

func isDirectory(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// Close closes all open views, and deletes those qgroups of removed volumes that can be deleted by then. It releases
// every descriptor. Volumes stay; mounted volumes lose their protection. Closing twice does nothing.
func (b *Backend) Close() error { return b.closeOnce() }

func (b *Backend) close() error {
	err := b.snapshots.CloseAll(b.closeSnapshot)
	if !b.readOnly {
		b.leaveQgroups()
	}
	return errors.Join(err, b.closeFiles())
}

func (b *Backend) closeFiles() error {
	var errs []error
	if b.quotas != nil {
		errs = append(errs, b.quotas.Close())
	}
	errs = append(errs,
		b.uses.CloseAll(func(_ string, dir *subvolume) error { return dir.Close() }),
		b.dirs.close())
	if b.lock != nil {
		errs = append(errs, flock.Release(b.lock))
	}
	if b.fs != nil {
		errs = append(errs, b.fs.Close())
	}
	return errors.Join(errs...)
}

// commit makes all earlier changes to the filesystem durable.
func (b *Backend) commit() error {
	if err := btrfsctl.Commit(int(b.fs.Fd())); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
