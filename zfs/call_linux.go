package zfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// kernel has the calls of the kernel that the package makes. linux implements it. Tests have another, with faults.
type kernel interface {
	Exists(name string) (bool, error)
	Stats(name string) (zfsctl.Dataset, error)
	PoolProperties(pool string) (zfsctl.Properties, error)
	Children(name string) iter.Seq2[zfsctl.Dataset, error]
	Snapshots(name string) iter.Seq2[zfsctl.Dataset, error]

	Create(name string, values zfsctl.Values) error
	Clone(name, origin string, values zfsctl.Values) error
	Snapshot(name string) error
	Set(name string, values zfsctl.Values) error
	Rename(name, to string) error
	Rollback(name, snapshot string) error
	Destroy(name string) error
	DestroySnapshot(name string) error
	DestroySnapshotLater(name string) error
	Promote(name string) error
	Program(pool, program string, argv []string) (any, error)

	Send(snapshot, from string, to *os.File) error
	Receive(snapshot, origin string, values zfsctl.Values, from *os.File) error
	Diff(from, snapshot string, to *os.File) error

	Mount(source, dir string, flags uintptr, data string) error
	// Unmount unmounts everything on a directory, and removes the directory, as mountdir.Remove.
	Unmount(dir string, detach bool) error

	Close() error
}

// linux has the calls of the kernel module, mount(2) and unmount(2).
type linux struct{ *zfsctl.Control }

func (linux) Mount(source, dir string, flags uintptr, data string) error {
	return unix.Mount(source, dir, "zfs", flags, data)
}

func (linux) Unmount(dir string, detach bool) error { return mountdir.Remove(dir, detach) }

// patience is how long a call that changes something may take to end after its context has ended. Then it is left to
// itself.
const patience = 10 * time.Second

// grace is how long the steps that follow a call may take after its context has ended.
const grace = time.Minute

// lookEvery is how often a call that waits looks whether the pool is suspended.
const lookEvery = time.Second

// probeFor is how long opening a home waits for the first answer of the kernel.
const probeFor = 30 * time.Second

// lockFor is how long opening a home waits for the lock of the home that had the dataset open before.
const lockFor = 30 * time.Second

// control makes calls of the kernel. Its methods are safe for concurrent use.
type control struct {
	kernel   kernel
	pool     string
	kstats   string // where the kernel module shows its statistics, with a directory per pool
	patience time.Duration
	grace    time.Duration
	lockFor  time.Duration
	calls    calls
}

// openControl opens the interface of the kernel, and checks its answers. Returns errdefs.ErrUnavailable if the pool is not
// imported or is suspended, or if the kernel does not answer in time. Returns graphdriver.ErrPrerequisites if the interface is
// not the known one.
func openControl(ctx context.Context, pool string) (*control, error) {
	device, err := zfsctl.Open()
	if err != nil {
		return nil, unknownInterface(err)
	}
	c := &control{kernel: linux{device}, pool: pool, kstats: zfsctl.Kstats, patience: patience, grace: grace, lockFor: lockFor}
	if err := c.probe(ctx, probeFor, device.Check); err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return c, nil
}

// probe waits for the first answer of the kernel, at most for that time.
func (c *control) probe(ctx context.Context, atMost time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, atMost, fault.New(errdefs.ErrUnavailable,
		"%s has not answered for %s, perhaps because a pool is being imported: try again when \"zpool list\" answers", zfsctl.Device, atMost))
	defer cancel()
	return unknownInterface(c.ask(ctx, "probe", check))
}

// unknownInterface adds graphdriver.ErrPrerequisites to the error of a kernel whose interface is not the known one.
func unknownInterface(err error) error {
	if errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("%w: %w", graphdriver.ErrPrerequisites, err)
	}
	return err
}

// ask makes a call that changes nothing, and has no result but an error.
func (c *control) ask(ctx context.Context, op string, call func() error) error {
	_, err := read(ctx, c, op, func(kernel) (struct{}, error) { return struct{}{}, call() })
	return err
}

// later returns a context for the steps that follow a call. It ends some time after ctx, so that they are done although the
// request was cancelled, and do not keep its caller waiting for ever.
func (c *control) later(ctx context.Context) (context.Context, context.CancelFunc) {
	after, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(c.grace, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(after, func() { timer.Stop() })
	})
	return after, func() {
		stop()
		cancel(context.Canceled)
	}
}

// read makes a call that changes nothing, and returns its result. If ctx ends, read does not wait for the call to end.
func read[T any](ctx context.Context, c *control, op string, call func(kernel) (T, error)) (T, error) {
	var value, none T
	err := c.run(ctx, op, 0, func(k kernel) (err error) {
		value, err = call(k)
		return err
	})
	var lost *lostError
	switch {
	case errors.As(err, &lost):
		return none, lost.err // the call may still write to value
	case err != nil:
		return none, err
	}
	return value, nil
}

// change makes a call that changes something. Once the call has begun, its own result counts, even if ctx ends
// meanwhile. Returns a *lostError if the outcome is not known.
func (c *control) change(ctx context.Context, op string, call func(kernel) error) error {
	err := c.run(ctx, op, c.patience, call)
	switch {
	case errors.Is(err, unix.EINTR), // the process was frozen, or a debugger has stopped it
		errors.Is(err, unix.ENOMEM), errors.Is(err, nvlist.ErrMalformed): // of the answer, perhaps
		return &lostError{op: op, err: err}
	}
	return err
}

// run makes a call. Returns a *lostError if the call does not end. After any other error the call has failed, or has not
// begun.
//
// A call waits in the kernel while its pool is suspended or another is being imported, and nothing can end it there. If
// the pool is suspended, the call is left to itself. So is a call that does not end although ctx has ended. When this
// process is killed, its calls come to their end, and until then the kernel keeps its files open and locked.
func (c *control) run(ctx context.Context, op string, patience time.Duration, call func(kernel) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.checkPool(); err != nil {
		return err
	}
	err := c.wait(ctx, op, patience, func() error { return call(c.kernel) })
	if errors.Is(err, unix.EAGAIN) { // the pool was suspended in between
		return cmp.Or(c.checkPool(), err)
	}
	return err
}

// wait makes a call that may wait for the pool, without a look at the pool before. Returns a *lostError if the call does
// not end, and errdefs.ErrUnavailable, without the call, if too many others have not ended.
func (c *control) wait(ctx context.Context, op string, patience time.Duration, call func() error) error {
	end, err := c.calls.begin()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer end()
		err = call()
	}()
	if gaveUp := c.await(ctx, patience, ended); gaveUp != nil {
		c.calls.leave(ended)
		return &lostError{op: op, err: gaveUp, left: true, ended: ended}
	}
	return err
}

// await waits for a call to end. Returns the reason if it gives up.
func (c *control) await(ctx context.Context, patience time.Duration, ended <-chan struct{}) error {
	poll := time.NewTicker(lookEvery)
	defer poll.Stop()
	cancelled := ctx.Done()
	var giveUp <-chan time.Time
	for {
		select {
		case <-ended:
			return nil
		case <-poll.C:
			if err := c.checkPool(); err != nil {
				return err
			}
		case <-cancelled:
			cancelled = nil
			giveUp = time.After(patience)
		case <-giveUp:
			return context.Cause(ctx)
		}
	}
}

// waiting returns a context for the wait for others, which may themselves wait for the pool. It ends when the pool is
// suspended.
// Returns errdefs.ErrUnavailable if the pool is suspended already.
func (c *control) waiting(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := c.checkPool(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stopped := make(chan struct{})
	var look func()
	look = func() {
		select {
		case <-stopped:
			return
		default:
		}
		if err := c.checkPool(); err != nil {
			cancel(err)
			return
		}
		time.AfterFunc(lookEvery, look)
	}
	time.AfterFunc(lookEvery, look)
	return ctx, sync.OnceFunc(func() { close(stopped); cancel(context.Canceled) }), nil
}

// exists reports whether a dataset or snapshot exists.
func (c *control) exists(ctx context.Context, name string) (bool, error) {
	return read(ctx, c, "get", func(k kernel) (bool, error) { return k.Exists(name) })
}

// checkPool reports, without a call, whether the pool is imported and accepts writes. Returns errdefs.ErrUnavailable if
// it is not imported, or is suspended.
func (c *control) checkPool() error {
	health, err := zfsctl.Health(c.kstats, c.pool)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.New(errdefs.ErrUnavailable, "the pool %s is not imported: run \"zpool import %[1]s\"", c.pool)
	case err != nil:
		return err
	case health == zfsctl.Suspended:
		return fault.New(errdefs.ErrUnavailable, "the pool %s is suspended after errors of its devices: run \"zpool status %[1]s\", bring them back, then run \"zpool clear %[1]s\"", c.pool)
	}
	return nil
}

// isRefused reports whether err is that of a call that the kernel has refused.
func isRefused(err error) bool {
	var refused *zfsctl.Error
	return errors.As(err, &refused) && !isLost(err)
}

// lostError is a call whose outcome is not known: it was interrupted, or does not end.
type lostError struct {
	op    string
	err   error
	left  bool            // the call had not ended when the error was made
	ended <-chan struct{} // closed when the call has ended; nil unless left
	next  *sequel         // called when the outcome has been looked at; nil: nobody looks later
}

func (e *lostError) Error() string {
	if e.left {
		return "zfs " + e.op + ": does not end: " + e.err.Error()
	}
	return "zfs " + e.op + ": was interrupted: " + e.err.Error()
}

func (e *lostError) Unwrap() error { return e.err }

func isLost(err error) bool {
	var lost *lostError
	return errors.As(err, &lost)
}
