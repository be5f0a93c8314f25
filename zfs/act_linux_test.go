package zfs

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// acting is a backend whose zfs is a script, with an index of the list that the script prints, and one step.
type acting struct {
	*Backend
	dir           string
	step          step
	looks, undone atomic.Int32
}

// newActing returns an acting. Its zfs lists the dataset "a", and runs script for any other command.
func newActing(t *testing.T, script string, happened bool, lookErr error) *acting {
	t.Helper()
	c, dir := fakeZFS(t, "if [ \"$1\" = list ]; then\n"+oneDataset+"exit\nfi\n"+script)
	a := &acting{Backend: &Backend{zfs: c, log: slog.New(slog.DiscardHandler)}, dir: dir}
	x := fakeIndex(t, c, dir)
	a.volumes.ctx, a.volumes.zfs, a.volumes.root, a.volumes.counter, a.volumes.log = x.ctx, x.zfs, x.root, x.counter, x.log
	a.step = step{
		args: []string{"create", "pool/new"},
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

// listed is the number of times that zfs has listed.
func (a *acting) listed(t *testing.T) int {
	t.Helper()
	loads, err := os.ReadFile(a.dir + "/loads")
	require.NoError(t, err)
	return len(loads)
}

// lookAgain looks into the index again.
func (a *acting) lookAgain(t *testing.T) {
	t.Helper()
	_, ok, err := a.volumes.get(t.Context(), "a")
	require.NoError(t, err)
	assert.True(t, ok)
}

// TestAct: the outcome of a step is the answer of zfs. If zfs was killed, the outcome is the state of the pool.
func TestAct(t *testing.T) {
	lookErr := errors.New("no /dev/zfs")
	for name, test := range map[string]struct {
		script   string
		happened bool
		lookErr  error
		// The expected answer:
		out    string
		says   []string // parts of the error; nil: there is no error
		looked bool     // the step looked at the pool, and the index is read again
	}{
		"succeeds":                 {script: "echo done", out: "done\n"},
		"warns":                    {script: "echo done; echo 'warning: not shared' >&2", out: "done\n"},
		"is slow":                  {script: "touch started; sleep 0.3; echo do; sleep 0.3; echo ne", out: "do\nne\n"},
		"fails":                    {script: "echo \"cannot create 'pool/new': out of space\" >&2; exit 1", says: []string{"zfs create: cannot create 'pool/new': out of space"}},
		"fails without words":      {script: "exit 2", says: []string{"zfs create: exit status 2"}},
		"fails after some output":  {script: "echo half; exit 255", says: []string{"exit status 255"}},
		"killed, has happened":     {script: "kill -9 $$", happened: true, looked: true},
		"killed, has not happened": {script: "echo words >&2; kill -9 $$", says: []string{"was interrupted", "killed"}, looked: true},
		"terminated":               {script: "kill -TERM $$", says: []string{"was interrupted", "terminated"}, looked: true},
		"dumped core":              {script: "kill -SEGV $$", happened: true, looked: true},
		"killed, nobody knows":     {script: "kill -9 $$", happened: true, lookErr: lookErr, says: []string{"was interrupted", "cannot be found out", lookErr.Error()}, looked: true},
	} {
		for _, cancelled := range []bool{false, true} {
			title := name
			if cancelled {
				title += ", cancelled"
			}
			t.Run(title, func(t *testing.T) {
				// zfs has time to end.
				a := newActing(t, "touch begun\n"+test.script, test.happened, test.lookErr)
				a.zfs.patience = time.Minute
				ctx := t.Context()
				if cancelled {
					ctx = cancelledAt(t, a.dir+"/begun")
				}
				out, err := a.act(ctx, a.step)
				assert.Equal(t, test.out, string(out))
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
					assert.Zero(t, a.looks.Load(), "zfs has said so")
				}
				a.lookAgain(t)
				assert.Equal(t, want, a.listed(t))
			})
		}
	}
}

// TestActDoesNotEnd: if zfs does not end in time, the step returns ErrUnavailable. Until zfs ends, each look is at the
// pool. Its changes until then are undone.
func TestActDoesNotEnd(t *testing.T) {
	for name, test := range map[string]struct {
		happened bool
		end      string
		undone   int32
	}{
		"and succeeds":             {true, "echo done", 1},
		"and fails":                {false, "exit 1", 0},
		"and is killed":            {false, "kill -9 $$", 0},
		"and is killed afterwards": {true, "kill -9 $$", 1},
	} {
		t.Run(name, func(t *testing.T) {
			a := newActing(t, "touch begun\nwhile [ ! -e end ]; do sleep 0.01; done\n"+test.end, test.happened, nil)
			out, err := a.act(cancelledAt(t, a.dir+"/begun"), a.step)
			require.ErrorIs(t, err, errdefs.ErrUnavailable)
			require.ErrorIs(t, err, context.Canceled)
			assert.True(t, isLost(err))
			assert.Empty(t, out)

			before := a.listed(t)
			for range 3 {
				a.lookAgain(t)
			}
			assert.Equal(t, before+3, a.listed(t))
			assert.Zero(t, a.looks.Load(), "it may still happen")
			settled := make(chan struct{})
			require.NoError(t, a.after(err, func() error { close(settled); return nil }))
			select {
			case <-settled:
				require.Fail(t, "it has not ended")
			default:
			}

			require.NoError(t, os.WriteFile(a.dir+"/end", nil, 0o600))
			<-settled
			assert.EqualValues(t, 1, a.looks.Load())
			assert.Equal(t, test.undone, a.undone.Load())
			before = a.listed(t)
			for range 3 {
				a.lookAgain(t)
			}
			assert.Equal(t, before+1, a.listed(t), "once, since something may have changed")
		})
	}
}

// TestActNotBegun: a step does not begin if its context has ended, or on a pool that takes no writes.
func TestActNotBegun(t *testing.T) {
	a := newActing(t, "touch begun", true, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	_, err := a.act(ctx, a.step)
	require.ErrorIs(t, err, gaveUp)
	require.NoError(t, os.WriteFile(a.dir+"/pool/state", []byte("SUSPENDED\n"), 0o600))
	_, err = a.act(t.Context(), a.step)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	assert.NoFileExists(t, a.dir+"/begun")
	assert.Zero(t, a.looks.Load())
}

// TestActOnSuspendedPool: if the pool is suspended while zfs runs, the step returns at once, and is settled later.
func TestActOnSuspendedPool(t *testing.T) {
	a := newActing(t, "echo SUSPENDED >pool/state\nwhile [ ! -e end ]; do sleep 0.01; done", true, nil)
	_, err := a.act(t.Context(), a.step)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "zpool clear")
	assert.Zero(t, a.looks.Load())
	settled := make(chan struct{})
	require.NoError(t, a.after(err, func() error { close(settled); return nil }))
	require.NoError(t, os.WriteFile(a.dir+"/pool/state", []byte("ONLINE\n"), 0o600))
	require.NoError(t, os.WriteFile(a.dir+"/end", nil, 0o600))
	<-settled
	assert.EqualValues(t, 1, a.undone.Load())
	a.lookAgain(t)
}
