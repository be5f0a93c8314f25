// Package poll repeats an attempt, at growing intervals, until a thing is no longer busy.
package poll

import (
	"context"
	"time"
)

// Pauses says when to try again.
type Pauses struct {
	First   time.Duration // after the first try; each pause is twice as long as the one before
	Longest time.Duration // the longest pause; 0: pauses grow without end
	AtMost  time.Duration // of all tries; 0: only the context ends them
}

// WhileBusy calls try as long as try reports busy and pauses allow another call. It returns the last error of try, or
// the cause if ctx has ended.
func WhileBusy(ctx context.Context, pauses Pauses, try func() (busy bool, err error)) error {
	var giveUp <-chan time.Time
	if pauses.AtMost > 0 {
		giveUp = time.After(pauses.AtMost)
	}
	for pause := pauses.First; ; pause *= 2 {
		if pauses.Longest > 0 {
			pause = min(pause, pauses.Longest)
		}
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
