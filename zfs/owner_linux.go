package zfs

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// All locks of a Backend are in its home. So only one home at a time may have a dataset open: a second home would take datasets
// that the first is making for left over. The dataset itself says which home that is, since mount namespaces and containers
// share nothing else.
//
// The record stays when the home is closed, so that opening it again changes nothing. It counts until the home is known to
// be closed, and not after the machine has started again. A container may have a boot id of its own, so that alone does not
// say that the machine has. The pool has been imported again too then.

// manyPIDs stands for the namespaces of a home that is open in several process id namespaces. Nobody sees all its processes.
const manyPIDs = "several"

// homeProperty is the record of the home that has the dataset open.
const homeProperty = "cowshed:home"

//go:embed own.lua
var ownProgram string

// owner names a home by its lock file.
type owner struct {
	boot   string // the boot id, which may be that of the container
	load   uint64 // of the pool: another number whenever it is imported
	pids   string // the process id namespace of the process that opened the home, or manyPIDs
	device uint64 // of the lock file
	inode  uint64
	home   string // its path in the mount namespace of that process
}

func (o owner) String() string {
	return fmt.Sprintf("%s %d %s %d %d %s", o.boot, o.load, o.pids, o.device, o.inode, o.home)
}

func (o owner) isSame(other owner) bool {
	return !o.isBefore(other) && o.device == other.device && o.inode == other.inode
}

// isBefore reports whether the machine has started again between both, or the pool has moved to another machine. Then no process
// of the one lives.
func (o owner) isBefore(other owner) bool { return o.boot != other.boot && o.load != other.load }

// parseOwner reads a record. Of a record that it does not know, it returns the whole as the home.
func parseOwner(record string) (o owner, known bool) {
	fields := strings.SplitN(record, " ", 6)
	if len(fields) < 6 {
		return owner{home: record}, false
	}
	load, loadErr := strconv.ParseUint(fields[1], 10, 64)
	device, deviceErr := strconv.ParseUint(fields[3], 10, 64)
	inode, inodeErr := strconv.ParseUint(fields[4], 10, 64)
	if errors.Join(loadErr, deviceErr, inodeErr) != nil {
		return owner{home: record}, false
	}
	return owner{boot: fields[0], load: load, pids: fields[2], device: device, inode: inode, home: fields[5]}, true
}

// loadOf returns the number that the pool got when it was imported.
func (b *Backend) loadOf(ctx context.Context) (uint64, error) {
	properties, err := read(ctx, b.zfs, "get", func(k kernel) (zfsctl.Properties, error) { return k.PoolProperties(b.zfs.pool) })
	if err != nil {
		return 0, err
	}
	load, ok := properties.Number("load_guid")
	if !ok {
		return 0, fmt.Errorf("zfs get %s: the kernel does not say load_guid", b.zfs.pool)
	}
	return load, nil
}

// ownerOf returns the record of a home that has a lock file.
func ownerOf(home string, load uint64) (o owner, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return o, err
	}
	pids, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return o, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(homedir.LockFile(home), &stat); err != nil {
		return o, &os.PathError{Op: "stat", Path: homedir.LockFile(home), Err: err}
	}
	return owner{boot: strings.TrimSpace(string(boot)), load: load, pids: pids, device: stat.Dev, inode: stat.Ino, home: home}, nil
}

// ownUnlessFrozen is own, for a Backend that may change the dataset.
func (b *Backend) ownUnlessFrozen(ctx context.Context, alone bool) error {
	if b.frozen {
		return nil
	}
	return b.own(ctx, alone)
}

// own makes this home the owner of the dataset. The caller has the home locked, and says whether it is alone there. Returns
// errdefs.ErrFailedPrecondition if another home has the dataset open, or may have.
func (b *Backend) own(ctx context.Context, alone bool) error {
	load, err := b.loadOf(ctx)
	if err != nil {
		return err
	}
	own, err := ownerOf(b.home, load)
	if err != nil {
		return err
	}
	d, err := b.stats(ctx, b.root)
	if err != nil {
		return err
	}
	record := ownRecord(d)
	for {
		want, replace := own, b.takeOver
		if is, known := parseOwner(record); known && is.isSame(own) {
			if want, replace = own.beside(is, alone), b.setOwner; is == want {
				return nil
			}
		}
		if record, err = replace(ctx, record, want); err != nil {
			return err
		}
	}
}

// beside is the record of a home that has a record already. Unless the home is opened alone, processes that the record tells
// of may have it open too.
func (o owner) beside(is owner, alone bool) owner {
	if !alone && o.pids != is.pids {
		o.pids = manyPIDs
	}
	return o
}

// ownRecord is the record of a dataset, "" if there is none. A dataset inherits that of the dataset above it.
func ownRecord(d zfsctl.Dataset) string {
	if d.Properties.SetAt(homeProperty) != d.Name {
		return ""
	}
	record, _ := d.Properties.Text(homeProperty)
	return record
}

// takeOver replaces a record if its home is closed. The home stays locked meanwhile, so that it does not open. It returns
// the record that there is then, which may be that of a third home.
func (b *Backend) takeOver(ctx context.Context, record string, own owner) (now string, err error) {
	other, known := parseOwner(record)
	if record == "" || known && other.isBefore(own) {
		return b.setOwner(ctx, record, own)
	}
	lock, closed, err := b.lockClosed(ctx, other, own)
	switch {
	case err != nil && (ctx.Err() != nil || b.zfs.checkPool() != nil):
		return "", err
	case err != nil:
		return "", fault.New(errdefs.ErrFailedPrecondition, "the home %s may have the dataset %s open, so %s cannot: %w. %s",
			other.home, b.root, own.home, err, b.ifGone())
	case !closed:
		return "", fault.New(errdefs.ErrFailedPrecondition, "the home %s has the dataset %s open, so %s cannot: give each home a dataset of its own. %s",
			other.home, b.root, own.home, b.ifGone())
	}
	now, err = b.setOwner(ctx, record, own)
	return now, errors.Join(err, b.after(err, func() error { return release(lock) }))
}

// ifGone is the advice for a record of a home that is gone.
func (b *Backend) ifGone() string {
	return fmt.Sprintf("If that home is gone, run: zfs inherit %s %s", homeProperty, b.root)
}

// lockClosed locks the home of a record, if it is there. closed reports whether nobody has it open for certain. A home that
// is not there, or is covered by a mount, is closed if no process has its lock file open. This can be known among the
// processes that this process sees alone.
func (b *Backend) lockClosed(ctx context.Context, other, own owner) (lock *os.File, closed bool, err error) {
	waiting, cancel := context.WithTimeoutCause(ctx, b.zfs.lockFor, fmt.Errorf("its filesystem has not answered for %s", b.zfs.lockFor))
	defer cancel()
	there := false
	lock, err = inHome(waiting, b, func() (lock *os.File, err error) {
		lock, there, err = other.lock()
		return lock, err
	}, release)
	if err != nil || there {
		return lock, lock != nil, err
	}
	if other.pids != own.pids {
		return nil, false, nil
	}
	held, err := mounttable.IsHeld(mounttable.File{Device: other.device, Inode: other.inode})
	return nil, !held && err == nil, err
}

// lock locks the home of a record. It returns no file if the home is not there, or others have it open.
func (o owner) lock() (lock *os.File, there bool, err error) {
	lock, err = openLock(homedir.LockFile(o.home))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(lock.Fd()), &stat); err != nil || stat.Dev != o.device || stat.Ino != o.inode {
		return nil, false, errors.Join(err, lock.Close())
	}
	free, err := flock.TryExclusive(lock)
	if !free {
		return nil, true, errors.Join(err, flock.Release(lock))
	}
	return lock, true, nil
}

// openLock opens a lock file. Network filesystems lock only files that are open for writing, others any.
func openLock(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EROFS) {
		lock, err = os.OpenFile(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	return lock, err
}

// release gives up a lock, if there is one.
func release(lock *os.File) error {
	if lock == nil {
		return nil
	}
	return flock.Release(lock)
}

// setOwner replaces a record, unless another process has replaced it. It returns the record that there is then. A full pool
// stays usable: if there is no space for the record, other homes do not find this one.
func (b *Backend) setOwner(ctx context.Context, record string, own owner) (now string, err error) {
	answers := make(chan any, 1)
	err = b.act(ctx, step{
		op: "program",
		do: func(k kernel) error {
			answer, err := k.Program(b.zfs.pool, ownProgram, []string{b.root, homeProperty, record, own.String()})
			if err == nil {
				answers <- answer
			}
			return err
		},
		happened: func(ctx context.Context) (bool, error) {
			d, err := b.stats(ctx, b.root)
			return err == nil && ownRecord(d) == own.String(), err
		},
	})
	now = own.String()
	if err == nil {
		select {
		case answer := <-answers:
			now, err = b.readOwned(answer)
		default: // it was interrupted, and has happened
		}
	}
	if fault.IsFull(err) {
		b.log.Warn("zfs: the pool has no space for the record of its home: do not open the dataset with another home", "dataset", b.root, "home", b.home, "error", err)
		return own.String(), nil
	}
	return now, fault.Wrap("record home of dataset", b.root, err)
}

// readOwned reads the answer of own.lua.
func (b *Backend) readOwned(answer any) (record string, err error) {
	values, _ := answer.(nvlist.List)
	errno, ok := values["errno"].(int64)
	record, has := values["record"].(string)
	switch {
	case !ok || errno == 0 && !has:
		return "", fmt.Errorf("zfs program: unexpected answer %v", answer)
	case errno != 0:
		return "", &zfsctl.Error{Op: "set", Name: b.root, Err: unix.Errno(errno)}
	}
	return record, nil
}
