package zfs

import (
	"time"

	"github.com/cowshed/cowshed/internal/poll"
)

// For how long something may be busy before that is an error.
const (
	busyFor         = 3 * time.Second        // datasets: what other programs have mounted they may be about to unmount
	snapshotBusyFor = 300 * time.Millisecond // a view's snapshot: the kernel may end its unmounting in the background
)

// patient is when to try again what is busy.
func patient(atMost time.Duration) poll.Pauses {
	return poll.Pauses{First: 10 * time.Millisecond, AtMost: atMost}
}
