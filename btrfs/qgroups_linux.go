package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// leftovers are the qgroups of destroyed subvolumes, which may have to be removed. A qgroup cannot be removed before
// the kernel has dropped its subvolume, which may take long. Kernels from 6.11 remove most qgroups by themselves.
type leftovers struct {
	mu       sync.Mutex
	expected map[uint64]struct{}
	since    int // number of qgroups added since the last sweep
}

// qgroupMark begins the name of an empty file in the directory removing, and the id of a subvolume follows. The file
// says that the qgroup of that subvolume is to be removed.
const qgroupMark = "qgroup-"

// sweepEvery is the number of destroyed subvolumes after which their qgroups are swept.
const sweepEvery = 64

// markQgroup is expectQgroup for a volume, with a mark that outlives this process. The qgroup of a volume stays as long
// as other subvolumes reference data that the volume wrote. Where there is no room for a mark, the qgroup is left over
// if the process dies.
func (b *Backend) markQgroup(id uint64) {
	if b.expectQgroup(id) {
		b.writeMark(id)
	}
}

func (b *Backend) writeMark(id uint64) {
	fd, err := unix.Openat(int(b.dirs.removing.Fd()), qgroupMark+strconv.FormatUint(id, 10),
		unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil {
		b.log.Debug("btrfs: qgroup of a removed layer cannot be marked", "qgroup", id, "error", err)
	}
}

// unmarkQgroup undoes markQgroup, for a volume that stays.
func (b *Backend) unmarkQgroup(id uint64) {
	b.leftovers.mu.Lock()
	delete(b.leftovers.expected, id)
	b.leftovers.mu.Unlock()
	err := unix.Unlinkat(int(b.dirs.removing.Fd()), qgroupMark+strconv.FormatUint(id, 10), 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		b.log.Debug("btrfs: mark of the qgroup of a layer cannot be deleted", "qgroup", id, "error", err)
	}
}

// expectQgroup notes that the subvolume id, which is about to be destroyed, may leave a qgroup. It reports whether
// quotas are on.
func (b *Backend) expectQgroup(id uint64) bool {
	mode, err := b.quotas.Mode()
	if err != nil || mode == quota.Off {
		return false
	}
	b.leftovers.mu.Lock()
	defer b.leftovers.mu.Unlock()
	if b.leftovers.expected == nil {
		b.leftovers.expected = make(map[uint64]struct{})
	}
	if _, ok := b.leftovers.expected[id]; !ok {
		b.leftovers.expected[id] = struct{}{}
		b.leftovers.since++
	}
	return true
}

// sweepSometimes sweeps if sweepEvery subvolumes have been destroyed since the last sweep.
func (b *Backend) sweepSometimes() {
	b.leftovers.mu.Lock()
	due := b.leftovers.since >= sweepEvery
	if due {
		b.leftovers.since = 0
	}
	b.leftovers.mu.Unlock()
	if due {
		b.sweepQgroups()
	}
}

// sweepQgroups removes those qgroups of destroyed subvolumes that can be removed by now, and their marks. The other
// qgroups stay for the next sweep.
func (b *Backend) sweepQgroups() {
	if err := errors.Join(b.sweepExpected(), b.sweepMarked()); err != nil {
		b.log.Warn("btrfs: qgroups of removed layers are left over", "error", err)
	}
}

// leaveQgroups sweeps for the last time. It marks the qgroups that cannot be removed yet, for the next process that
// opens the home.
func (b *Backend) leaveQgroups() {
	b.sweepQgroups()
	b.leftovers.mu.Lock()
	defer b.leftovers.mu.Unlock()
	for id := range b.leftovers.expected {
		b.writeMark(id)
	}
}

func (b *Backend) sweepExpected() error {
	b.leftovers.mu.Lock()
	var ids []uint64
	for id := range b.leftovers.expected {
		ids = append(ids, id)
	}
	b.leftovers.mu.Unlock()
	var errs []error
	for _, id := range ids {
		gone, err := b.removeQgroup(id)
		errs = append(errs, err)
		if gone {
			b.leftovers.mu.Lock()
			delete(b.leftovers.expected, id)
			b.leftovers.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

func (b *Backend) sweepMarked() error {
	entries, err := os.ReadDir(b.dirs.removing.Name())
	errs := []error{err}
	for _, entry := range entries {
		if !isQgroupMark(entry) {
			continue
		}
		id, _ := markedQgroup(entry.Name())
		gone, err := b.removeQgroup(id)
		if gone {
			err = unix.Unlinkat(int(b.dirs.removing.Fd()), entry.Name(), 0)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmark qgroup of subvolume %d: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// removeQgroup removes a qgroup, and reports whether it is gone. It returns no error if the qgroup cannot be removed
// yet, or cannot be removed for want of space.
func (b *Backend) removeQgroup(id uint64) (gone bool, err error) {
	err = b.quotas.Remove(id)
	if errors.Is(err, quota.ErrNotYet) || fault.IsFull(err) {
		return false, nil
	}
	return err == nil, err
}

func isQgroupMark(entry fs.DirEntry) bool {
	_, ok := markedQgroup(entry.Name())
	return ok && entry.Type().IsRegular()
}

func markedQgroup(name string) (id uint64, ok bool) {
	digits, ok := strings.CutPrefix(name, qgroupMark)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 64)
	return id, err == nil
}
