package zfs

import (
	"time"

	"github.com/cowshed/cowshed/internal/poll"
)

// How long Cowshed waits for a busy dataset or snapshot before it returns an error.
const (
	busyFor         = 3 * time.Second        // datasets: other programs may be about to unmount them
	snapshotBusyFor = 300 * time.Millisecond // a view's snapshot: the kernel may end its unmounting in the background
)

// patient returns the pauses between attempts at a busy thing, for at most that time.
func patient(atMost time.Duration) poll.Pauses {
	return poll.Pauses{First: 10 * time.Millisecond, AtMost: atMost}
}
