package zfs

import (
	"sync"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// A call that was left to itself keeps a thread, and nothing can end it. A client that comes again and again, while the
// kernel does not answer, must not take all threads: Go ends the process at 10,000.
const (
	maxLeft  = 64   // calls that were left to themselves and have not ended; beyond, no call begins
	maxCalls = 1024 // calls that have not ended, with those whose callers wait
)

// calls counts the calls that have not ended. The zero value counts none.
type calls struct {
	mu    sync.Mutex
	count int
	left  int
}

// begin counts one more call, until the caller calls end. Returns errdefs.ErrUnavailable if there are too many.
func (c *calls) begin() (end func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.left >= maxLeft:
		return nil, fault.New(errdefs.ErrUnavailable, "%d abandoned calls of the kernel have not ended: see \"zpool status\" and the kernel's log, and try again later", c.left)
	case c.count >= maxCalls:
		return nil, fault.New(errdefs.ErrUnavailable, "%d calls of the kernel are under way, and no more are allowed: try again later", c.count)
	}
	c.count++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.count--
	}, nil
}

// leave counts a call as left to itself, until it has ended.
func (c *calls) leave(ended <-chan struct{}) {
	c.mu.Lock()
	c.left++
	c.mu.Unlock()
	go func() {
		<-ended
		c.mu.Lock()
		defer c.mu.Unlock()
		c.left--
	}()
}

var _ cowcommon.Leaver = (*Backend)(nil)

// Left implements cowcommon.Leaver.
func (b *Backend) Left() int { return b.zfs.calls.leftNow() }

// leftNow is how many calls were left to themselves and have not ended.
func (c *calls) leftNow() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}
