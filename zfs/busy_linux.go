package zfs

import (
	"context"
	"time"
)

// For how long something may be busy before that is an error.
const (
	busyFor         = 3 * time.Second        // datasets: what other programs have mounted they may be about to unmount
	snapshotBusyFor = 300 * time.Millisecond // a view's snapshot: the kernel may end its unmounting in the background
)

// whileBusy calls try again and again, at growing intervals, until it says that what it needs is not busy, or for that
// long. It returns the last error of try, or why ctx has ended.
func whileBusy(ctx context.Context, atMost time.Duration, try func() (busy bool, err error)) error {
	giveUp := time.After(atMost)
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		busy, err := try()
		if !busy {
			return err
		}
		select {
		case <-time.After(pause):
		case <-giveUp:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
