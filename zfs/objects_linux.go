package zfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
)

const (
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

// changes are the objects that may have changed on two ways from one snapshot: to base and to top.
type changes struct{ base, top objectSet }

// has reports whether an object may have changed on either way.
func (c changes) has(object uint64) bool { return c.base.has(object) || c.top.has(object) }

// onBoth reports whether an object may have changed on both ways.
func (c changes) onBoth(object uint64) bool { return c.base.has(object) && c.top.has(object) }

// changedObjects asks the kernel which objects of the snapshot top may differ from those of base. These are all objects
// in each block of 32 that was written since base. top must have come from base. zfs diff begins in the same way
// (ZFS_IOC_DIFF). Nothing needs to be mounted for it. Returns *[treediff.NoHintsError] if the kernel gives no valid answer.
func (c *control) changedObjects(ctx context.Context, base, top string) (objectSet, error) {
	objects, err := c.diffSnapshots(ctx, base, top)
	for errors.Is(err, unix.EINTR) { // the process was stopped or frozen meanwhile
		objects, err = c.diffSnapshots(ctx, base, top)
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

// diffSnapshots asks for the objects once. When the process was frozen, the kernel may begin to write all records a second
// time. diffSnapshots then returns unix.EINTR, or the records are malformed.
func (c *control) diffSnapshots(ctx context.Context, base, top string) (objectSet, error) {
	sets := make(chan objectSet, 1)
	err := c.output(ctx, "diff", 0, func(k kernel, to *os.File) error { return k.Diff(base, top, to) }, func(r io.Reader) error {
		set, err := readObjects(r)
		if err != nil {
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
		sets <- set
		return nil
	})
	if err != nil {
		return nil, err
	}
	return <-sets, nil
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
