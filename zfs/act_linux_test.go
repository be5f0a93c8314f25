package zfs

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// acting is a backend with a fake kernel and one step.
type acting struct {
	*Backend
	kernel        *fakeKernel
	dir           string
	step          step
	begun         chan struct{} // closed when the step has begun
	looks, undone atomic.Int32
}

// newActing returns an acting. Its kernel lists the volume "a", and its step calls do.
func newActing(t *testing.T, do func() error, happened bool, lookErr error) *acting {
	t.Helper()
	k := oneDataset()
	c, dir := newFake(t, k)
	a := &acting{Backend: &Backend{zfs: c, log: slog.New(slog.DiscardHandler)}, kernel: k, dir: dir, begun: make(chan struct{})}
	x := fakeIndex(t, c, dir)
	a.volumes.ctx, a.volumes.zfs, a.volumes.root, a.volumes.counter, a.volumes.log = x.ctx, x.zfs, x.root, x.counter, x.log
	a.step = step{
		op: "create",
		do: func(kernel) error {
			close(a.begun)
			return do()
		},
		happened: func(ctx context.Context) (bool, error) {
			a.looks.Add(1)
			return happened, errors.Join(lookErr, ctx.Err())
		},
		undo: func(ctx context.Context) error {
			a.undone.Add(1)
			return ctx.Err()
		},
	}
	_, _, err := a.volumes.get(t.Context(), "a")
	require.NoError(t, err)
	return a
}

// lookAgain looks into the index again.
func (a *acting) lookAgain(t *testing.T) {
	t.Helper()
	_, ok, err := a.volumes.get(t.Context(), "a")
	require.NoError(t, err)
	assert.True(t, ok)
}

// TestAct: the outcome of a step is the answer of the kernel. If the call was interrupted, the outcome is the state of
// the pool.
func TestAct(t *testing.T) {
	lookErr := errors.New("no answer")
	for name, test := range map[string]struct {
		result   error
		happened bool
		lookErr  error
		// The expected answer:
		says   []string // parts of the error; nil: there is no error
		looked bool     // the step looked at the pool, and the index is read again
	}{
		"succeeds":                      {},
		"fails":                         {result: refused(unix.ENOSPC), says: []string{"zfs create pool/new: no space left on device"}},
		"interrupted, has happened":     {result: refused(unix.EINTR), happened: true, looked: true},
		"interrupted, has not happened": {result: refused(unix.EINTR), says: []string{"was interrupted", "interrupted system call"}, looked: true},
		"interrupted, nobody knows":     {result: refused(unix.EINTR), happened: true, lookErr: lookErr, says: []string{"was interrupted", "cannot be found out", lookErr.Error()}, looked: true},
	} {
		for _, cancelled := range []bool{false, true} {
			title := name
			if cancelled {
				title += ", cancelled"
			}
			t.Run(title, func(t *testing.T) {
				a := newActing(t, func() error {
					time.Sleep(50 * time.Millisecond)
					return test.result
				}, test.happened, test.lookErr)
				a.zfs.patience = time.Minute
				ctx := t.Context()
				if cancelled {
					ctx = cancelledAt(t, a.begun)
				}
				err := a.act(ctx, a.step)
				if test.says == nil {
					require.NoError(t, err)
				}
				for _, says := range test.says {
					require.ErrorContains(t, err, says)
				}
				assert.NotErrorIs(t, err, context.Canceled)
				assert.Equal(t, test.looked && test.says != nil, isLost(err))
				assert.Zero(t, a.undone.Load())
				want := 1
				if test.looked {
					assert.EqualValues(t, 1, a.looks.Load())
					want = 2
				} else {
					assert.Zero(t, a.looks.Load(), "the kernel has said so")
				}
				a.lookAgain(t)
				assert.EqualValues(t, want, a.kernel.loads.Load())
			})
		}
	}
}

// TestActDoesNotEnd: if a call does not end in time, the step returns ErrUnavailable. Until the call ends, each look is
// at the pool. Its changes until then are undone.
func TestActDoesNotEnd(t *testing.T) {
	for name, test := range map[string]struct {
		happened bool
		result   error
		undone   int32
	}{
		"and succeeds":                  {true, nil, 1},
		"and fails":                     {false, refused(unix.EIO), 0},
		"and is interrupted":            {false, refused(unix.EINTR), 0},
		"and is interrupted afterwards": {true, refused(unix.EINTR), 1},
	} {
		t.Run(name, func(t *testing.T) {
			end := make(chan struct{})
			a := newActing(t, func() error { <-end; return test.result }, test.happened, nil)
			err := a.act(cancelledAt(t, a.begun), a.step)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			require.ErrorIs(t, err, context.Canceled)
			assert.True(t, isLost(err))

			before := a.kernel.loads.Load()
			for range 3 {
				a.lookAgain(t)
			}
			assert.Equal(t, before+3, a.kernel.loads.Load())
			assert.Zero(t, a.looks.Load(), "it may still happen")
			settled := make(chan struct{})
			require.NoError(t, a.after(err, func() error { close(settled); return nil }))
			select {
			case <-settled:
				require.Fail(t, "it has not ended")
			default:
			}

			close(end)
			<-settled
			assert.EqualValues(t, 1, a.looks.Load())
			assert.Equal(t, test.undone, a.undone.Load())
			before = a.kernel.loads.Load()
			for range 3 {
				a.lookAgain(t)
			}
			assert.Equal(t, before+1, a.kernel.loads.Load(), "once, since something may have changed")
		})
	}
}

// TestActOnSuspendedPool: if the pool is suspended during a call, the step returns at once, and is settled later.
func TestActOnSuspendedPool(t *testing.T) {
	end := make(chan struct{})
	var a *acting
	a = newActing(t, func() error {
		setState(t, a.dir, "SUSPENDED")
		<-end
		return nil
	}, true, nil)
	err := a.act(t.Context(), a.step)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "zpool clear")
	assert.Zero(t, a.looks.Load())
	settled := make(chan struct{})
	require.NoError(t, a.after(err, func() error { close(settled); return nil }))
	setState(t, a.dir, "ONLINE")
	close(end)
	<-settled
	assert.EqualValues(t, 1, a.undone.Load())
	a.lookAgain(t)
}
