package sendstream

import (
	"bytes"
	"fmt"
	"time"
)

// UUID is a subvolume's UUID.
type UUID [16]byte

// String formats u as usual, in lower case.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Timespec is a point in time (struct btrfs_timespec). Nsec is below 1e9.
type Timespec struct {
	Sec  int64
	Nsec uint32
}

// Time converts t.
func (t Timespec) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

const nsecPerSec = 1_000_000_000

// checkPath returns an error if p cannot be a path of a stream. Such a path is relative to the root of the subvolume,
// which is "" itself. Its components are plain names, so it leads to no place outside.
func checkPath(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if bytes.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("%q holds a NUL byte", p)
	}
	for {
		name, rest, more := bytes.Cut(p, []byte{'/'})
		switch string(name) {
		case "", ".", "..":
			return fmt.Errorf("holds the component %q", name)
		}
		if !more {
			return nil
		}
		p = rest
	}
}
