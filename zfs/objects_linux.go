package zfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/sigmask"
)

// From sys/fs/zfs.h and sys/zfs_ioctl.h, the same in OpenZFS 2.0 to 2.3.
const (
	zfsIocDiff = 0x5a36

	// struct zfs_cmd, up to the last member that ZFS_IOC_DIFF reads. The kernel reads and writes all of it.
	cmdName   = 0    // zc_name: the later snapshot
	cmdValue  = 4144 // zc_value: the earlier snapshot
	cmdCookie = 12616
	cmdSize   = 64 << 10 // more than in any version

	maxSnapshotName = 256 // ZFS_MAX_DATASET_NAME_LEN

	// dmu_diff_record_t: type, first and last object.
	diffRecordSize = 24
	diffInUse      = 2 // DDR_INUSE
	diffFree       = 4 // DDR_FREE
)

// objectSet is a set of object numbers, which are inode numbers in a filesystem. Its ranges are sorted and do not
// overlap.
type objectSet []objectRange

type objectRange struct{ first, last uint64 }

// has reports whether an object is in the set.
func (s objectSet) has(object uint64) bool {
	_, found := slices.BinarySearchFunc(s, object, func(r objectRange, object uint64) int {
		switch {
		case r.last < object:
			return -1
		case r.first > object:
			return 1
		}
		return 0
	})
	return found
}

// changedObjects asks the kernel which objects of the snapshot top may differ from those of base. These are all objects
// in each block of 32 that was written since base. top must have come from base. zfs diff begins in the same way
// (ZFS_IOC_DIFF). Nothing needs to be mounted for it. Returns *[treediff.NoHintsError] if the version of OpenZFS is not
// known, or if the kernel gives no valid answer.
func changedObjects(ctx context.Context, base, top string) (objectSet, error) {
	version, err := os.ReadFile("/sys/module/zfs/version")
	if err != nil || !strings.HasPrefix(string(version), "2.") {
		return nil, &treediff.NoHintsError{Reason: "version", Err: errors.Join(fmt.Errorf("OpenZFS %q is not known to the driver", version), err)}
	}
	if len(base) >= maxSnapshotName || len(top) >= maxSnapshotName {
		return nil, fmt.Errorf("snapshots %s, %s: %w", base, top, unix.ENAMETOOLONG)
	}
	objects, err := diffSnapshots(ctx, base, top)
	for errors.Is(err, unix.EINTR) { // the process was stopped or frozen meanwhile
		objects, err = diffSnapshots(ctx, base, top)
	}
	reason := "kernel"
	switch {
	case err == nil:
		return objects, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, errMalformed):
		reason = "malformed"
	case errors.Is(err, unix.EXDEV): // top has not come from base
		reason = "unrelated"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		reason = "permission"
	}
	return nil, &treediff.NoHintsError{Reason: reason, Err: fmt.Errorf("diff %s %s: %w", base, top, err)}
}

// errMalformed says that records of the kernel break their format.
var errMalformed = errors.New("malformed records")

// diffSnapshots runs ZFS_IOC_DIFF once, on a thread that takes no signals. At a signal the kernel would fail, or begin
// again and write all records a second time. Repeated records are malformed.
func diffSnapshots(ctx context.Context, base, top string) (objectSet, error) {
	control, err := os.OpenFile("/dev/zfs", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()

	cmd := make([]byte, cmdSize)
	copy(cmd[cmdName:], top)
	copy(cmd[cmdValue:], base)
	binary.NativeEndian.PutUint64(cmd[cmdCookie:], uint64(w.Fd())) // Fd puts w into blocking mode
	ended := make(chan error, 1)
	go func() {
		err := sigmask.Do(func() error {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), zfsIocDiff, uintptr(unsafe.Pointer(&cmd[0])))
			runtime.KeepAlive(cmd)
			if errno != 0 {
				return errno
			}
			return nil
		})
		ended <- errors.Join(err, w.Close())
	}()
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	objects, readErr := readObjects(r)
	stop()
	_ = r.Close() // the kernel gets EPIPE if it is still writing
	err = <-ended
	// If the records are malformed, this stops reading, and the kernel gets EPIPE. If they end early, the kernel's
	// error is the reason.
	if readErr != nil && (err == nil || errors.Is(err, unix.EPIPE)) {
		return nil, fmt.Errorf("%w: %w", errMalformed, readErr)
	}
	return objects, err
}

// readObjects reads the records of ZFS_IOC_DIFF and returns the objects in use. It ignores the ranges of free objects:
// a free object has no name in top, and the end of such a range is wrong at times, for lack of bits.
func readObjects(r io.Reader) (objectSet, error) {
	var set objectSet
	buf := make([]byte, diffRecordSize*2048)
	for {
		n, err := io.ReadFull(r, buf)
		atEnd := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n%diffRecordSize == 0
		if err != nil && !atEnd {
			return nil, err
		}
		for b := buf[:n]; len(b) > 0; b = b[diffRecordSize:] {
			kind, first, last := binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])
			if kind == diffFree {
				continue
			}
			k := len(set) - 1
			if kind != diffInUse || last < first || k >= 0 && first <= set[k].last {
				return nil, fmt.Errorf("record of type %d for objects %d to %d", kind, first, last)
			}
			if k >= 0 && set[k].last+1 == first {
				set[k].last = last
			} else {
				set = append(set, objectRange{first, last})
			}
		}
		if atEnd {
			return set, nil
		}
	}
}
