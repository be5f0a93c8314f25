package sharedroot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/namelock"
)

// offKey is the key of the lock that each process without shared roots has on a home. It is not the name of a volume.
const offKey = "/off"

// StayOff opens a home without shared roots, until the caller calls end. Meanwhile nobody can turn them on: this process
// would take the tree of a shared volume for all of its content. isOn reports that they are on already; end is nil then,
// and the caller uses New.
func StayOff(ctx context.Context, home string) (end func() error, isOn bool, err error) {
	lock, err := namelock.Shared(ctx, homedir.LockFile(home), offKey)
	if err != nil {
		return nil, false, fault.Wrap("lock home", home, err)
	}
	end = sync.OnceValue(func() error { return lock.Unlock(nil) })
	if IsOn(home) {
		return nil, true, end()
	}
	return end, false, nil
}

// StayOffReading is StayOff for a process that only reads. It makes no file: in a home without locks, and on a filesystem that
// cannot be written to, it locks nothing.
func StayOffReading(ctx context.Context, home string) (end func() error, isOn bool, err error) {
	if _, err = os.Lstat(homedir.LockFile(home)); err == nil {
		end, isOn, err = StayOff(ctx, home)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return func() error { return nil }, IsOn(home), nil
	}
	return end, isOn, err
}

// turnOn makes the index of a home. Returns errdefs.ErrFailedPrecondition if there is none and processes have the home open
// without shared roots.
func (b *Backend) turnOn() error {
	if IsOn(b.home) {
		return nil
	}
	lock, ok, err := namelock.TryExclusive(b.locks, offKey)
	if err != nil {
		return err
	}
	if !ok {
		return fault.New(errdefs.ErrFailedPrecondition,
			"other processes use %s, and do not know of shared roots: stop them, and start one with the option first", filepath.Clean(b.home))
	}
	defer func() { _ = lock.Unlock(nil) }() // closing the file is enough
	return b.index.make()
}
