package zfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
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
	a := &acting{Backend: &Backend{zfs: c, log: slog.New(slog.DiscardHandler), closing: t.Context()}, kernel: k, dir: dir, begun: make(chan struct{})}
	a.home = t.TempDir()
	x := fakeIndex(t, c, dir)
	a.volumes.ctx, a.volumes.zfs, a.volumes.root, a.volumes.counter, a.volumes.pending, a.volumes.log = x.ctx, x.zfs, x.root, x.counter, &a.pending, x.log
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
				a.zfs.patience = testfs.Patience
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
			testfs.Receive(t, settled)
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

// TestSequel: the functions that follow a call which was left to itself are called in their order. If a call of such a
// function is left to itself too, the next functions wait for it.
func TestSequel(t *testing.T) {
	ends := []chan struct{}{make(chan struct{}), make(chan struct{})}
	a := newActing(t, func() error { <-ends[0]; return nil }, false, nil)
	err := a.act(cancelledAt(t, a.begun), a.step)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	const n = 20
	called := make(chan int, n+1)
	for i := range n {
		require.NoError(t, a.after(err, func() error {
			time.Sleep(time.Duration(n-i) * time.Millisecond)
			called <- i
			if i != n/2 {
				return nil
			}
			begun := make(chan struct{})
			s := a.step
			s.do = func(kernel) error { close(begun); <-ends[1]; return nil }
			return a.act(cancelledAt(t, begun), s)
		}))
	}
	select {
	case <-called:
		require.Fail(t, "it has not ended")
	case <-time.After(50 * time.Millisecond):
	}
	close(ends[0])
	for i := range n/2 + 1 {
		assert.Equal(t, i, testfs.Receive(t, called))
	}
	select {
	case <-called:
		require.Fail(t, "the call of the one before has not ended")
	case <-time.After(200 * time.Millisecond):
	}
	close(ends[1])
	for i := range n/2 - 1 {
		assert.Equal(t, n/2+1+i, testfs.Receive(t, called))
	}
	failed := errors.New("failed")
	require.Eventually(t, func() bool { return a.Left() == 0 && a.pendingNow() == 0 }, testfs.Patience, time.Millisecond)
	require.ErrorIs(t, a.after(err, func() error { return failed }), failed, "all have ended")
}

func (b *Backend) pendingNow() int {
	b.pending.mu.Lock()
	defer b.pending.mu.Unlock()
	return b.pending.count
}

// TestSettledWhenPoolAnswers: while the pool does not say whether a call has happened that was left to itself, its volume
// stays claimed. Then the call is undone. Close ends that.
func TestSettledWhenPoolAnswers(t *testing.T) {
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprintf("closes %t", closes), func(t *testing.T) {
			end := make(chan struct{})
			a := newActing(t, func() error { <-end; return nil }, true, nil)
			var beginClose context.CancelFunc
			a.closing, beginClose = context.WithCancel(t.Context())
			defer beginClose()
			var answers atomic.Bool
			look := a.step.happened
			a.step.happened = func(ctx context.Context) (bool, error) {
				if !answers.Load() {
					return false, errdefs.ErrUnavailable
				}
				return look(ctx)
			}
			err := a.act(cancelledAt(t, a.begun), a.step)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			settled := make(chan struct{})
			require.NoError(t, a.after(err, func() error { close(settled); return nil }))
			close(end)
			select {
			case <-settled:
				require.Fail(t, "nobody knows its outcome")
			case <-time.After(500 * time.Millisecond):
			}
			if closes {
				beginClose()
				testfs.Receive(t, settled)
				assert.Zero(t, a.undone.Load())
				return
			}
			answers.Store(true)
			testfs.Receive(t, settled)
			assert.EqualValues(t, 1, a.undone.Load())
		})
	}
}

// TestWaitOnSuspendedPool: nobody waits for a claim that waits for a suspended pool.
func TestWaitOnSuspendedPool(t *testing.T) {
	for name, wait := range map[string]func(ctx context.Context, b *Backend) error{
		"mount": func(ctx context.Context, b *Backend) error { return second(b.Mount(ctx, "a", "")) },
		"claim": func(ctx context.Context, b *Backend) error { return second(b.claim(ctx, "a")) },
		"rely":  func(ctx context.Context, b *Backend) error { return second(b.rely(ctx, "a")) },
		"limit": func(ctx context.Context, b *Backend) error { return b.SetLimit(ctx, "a", quota.Limit{}) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newActing(t, nil, false, nil)
			ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
			defer cancel()
			release, err := a.mounts.Claim(ctx, "a")
			require.NoError(t, err)
			defer release()
			release, err = a.relied.Claim(ctx, "a")
			require.NoError(t, err)
			defer release()
			suspended := make(chan struct{})
			time.AfterFunc(100*time.Millisecond, func() {
				defer close(suspended)
				setState(t, a.dir, "SUSPENDED")
			})
			err = wait(ctx, a.Backend)
			<-suspended
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			require.ErrorContains(t, err, "zpool clear")
		})
	}
}

// TestLockInSuspendedPool: nobody waits for the file of a lock in a pool that is suspended. A lock that is taken after all is
// given up.
func TestLockInSuspendedPool(t *testing.T) {
	a := newActing(t, nil, false, nil)
	end, unlocked := make(chan struct{}), make(chan string, 1)
	lock := func() (string, error) {
		setState(t, a.dir, "SUSPENDED")
		<-end
		return "taken", nil
	}
	_, err := inHome(t.Context(), a.Backend, lock, func(taken string) error { unlocked <- taken; return nil })
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "zpool clear")
	close(end)
	assert.Equal(t, "taken", testfs.Receive(t, unlocked))

	setState(t, a.dir, "ONLINE")
	refusal := errors.New("refused")
	_, err = inHome(t.Context(), a.Backend, func() (string, error) { return "", refusal }, func(string) error { panic("called") })
	require.ErrorIs(t, err, refusal)
}

// TestClaimInSuspendedPool: a claim and a use do not even look at the files of a home in a pool that is suspended.
func TestClaimInSuspendedPool(t *testing.T) {
	a := newActing(t, nil, false, nil)
	setState(t, a.dir, "SUSPENDED")
	for name, take := range map[string]func() error{
		"claim": func() error { _, _, err := a.claimVolume(t.Context(), "a"); return err },
		"share": func() error { return second(a.shareVolume(t.Context(), "a")) },
		"limit": func() error { return second(a.claimLimit(t.Context(), "a")) },
	} {
		require.ErrorContains(t, take(), "zpool clear", name)
	}
	setState(t, a.dir, "ONLINE")
	lock, ok, err := a.claimVolume(t.Context(), "a")
	require.NoError(t, err)
	require.True(t, ok)
	_, ok, err = a.claimVolume(t.Context(), "a")
	require.NoError(t, err)
	assert.False(t, ok, "somebody has it")
	require.NoError(t, lock.Unlock(nil))
}

// TestMountInSuspendedPool: a mount makes no directory in a home in a pool that is suspended, which would wait.
func TestMountInSuspendedPool(t *testing.T) {
	a := newActing(t, nil, false, nil)
	setState(t, a.dir, "SUSPENDED")
	dir := filepath.Join(t.TempDir(), "new")
	require.ErrorContains(t, a.mountAt(t.Context(), "pool/a", dir, 0, ""), "zpool clear")
	assert.NoDirExists(t, dir)
}

// TestOpenInSuspendedPool: opening does not wait for files of a home in a pool that is suspended meanwhile. They are closed
// when they have been opened.
func TestOpenInSuspendedPool(t *testing.T) {
	for name, giveUp := range map[string]func(a *acting, cancel func()){
		"suspended": func(a *acting, _ func()) { setState(t, a.dir, "SUSPENDED") },
		"cancelled": func(_ *acting, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			a := newActing(t, nil, false, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			file, err := os.Open(t.TempDir())
			require.NoError(t, err)
			end := make(chan struct{})
			err = a.openBounded(ctx, func(opening context.Context) error {
				giveUp(a, cancel)
				<-opening.Done()
				<-end
				a.lock = file
				return nil
			})
			require.Error(t, err)
			assert.False(t, isLost(err))
			a.volumes.counter = counter{}
			require.NoError(t, a.leaveLater())
			assert.Equal(t, 1, a.pendingNow())
			close(end)
			require.Eventually(t, func() bool { return errors.Is(second(file.Stat()), os.ErrClosed) }, testfs.Patience, time.Millisecond)
		})
	}

	a := newActing(t, nil, false, nil)
	setState(t, a.dir, "SUSPENDED")
	require.ErrorContains(t, a.openBounded(t.Context(), func(context.Context) error { panic("called") }), "zpool clear")
	assert.Zero(t, a.pendingNow())
	setState(t, a.dir, "ONLINE")
	refusal := errors.New("refused")
	require.ErrorIs(t, a.openBounded(t.Context(), func(context.Context) error { return refusal }), refusal)
	require.NoError(t, a.openBounded(t.Context(), func(context.Context) error { return nil }))
	assert.Zero(t, a.pendingNow())
}

// TestAfterSeveral: a function that follows several calls which were left to themselves waits for all of them.
func TestAfterSeveral(t *testing.T) {
	b := &Backend{log: slog.New(slog.DiscardHandler)}
	lost := []*lostError{{op: "a", next: &sequel{}}, {op: "b", next: &sequel{}}}
	err := fault.New(errdefs.ErrUnavailable, "more: %w", errors.Join(lost[0], errors.New("other"), fmt.Errorf("%w, %w", errors.New("x"), lost[1])))
	var called []int
	for i := range 3 {
		require.NoError(t, b.after(err, func() error { called = append(called, i); return nil }))
	}
	b.follow(lost[1].next, func() {})
	assert.Empty(t, called)
	b.follow(lost[0].next, func() {})
	assert.Equal(t, []int{0, 1, 2}, called)
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
	testfs.Receive(t, settled)
	assert.EqualValues(t, 1, a.undone.Load())
	a.lookAgain(t)
}
