package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// fakeKernel lists datasets below "pool". So a test has faults that the real kernel does not produce on demand. Other
// calls panic.
type fakeKernel struct {
	kernel
	children []zfsctl.Dataset
	err      atomic.Pointer[error]  // after the children
	stops    atomic.Pointer[func()] // called before the error
	loads    atomic.Int32           // number of lists
	gone     bool                   // the dataset above them, before the list ends
}

// oneDataset lists the volume "a".
func oneDataset() *fakeKernel { return &fakeKernel{children: []zfsctl.Dataset{volumeNamed("a")}} }

func volumeNamed(name string) zfsctl.Dataset {
	return zfsctl.Dataset{Name: "pool/" + name, Type: zfsctl.Filesystem, Properties: zfsctl.Properties{
		"creation": nvlist.List{"value": uint64(1)}, "quota": nvlist.List{"value": uint64(0)}, "refquota": nvlist.List{"value": uint64(0)},
		markProperty: nvlist.List{"value": markValue}, "mountpoint": nvlist.List{"value": "legacy"},
	}}
}

func (k *fakeKernel) Stats(name string) (zfsctl.Dataset, error) {
	k.loads.Add(1)
	return zfsctl.Dataset{Name: name}, nil
}

func (k *fakeKernel) Exists(string) (bool, error) { return !k.gone, nil }

func (k *fakeKernel) Children(string) iter.Seq2[zfsctl.Dataset, error] {
	return func(yield func(zfsctl.Dataset, error) bool) {
		for _, d := range k.children {
			if !yield(d, nil) {
				return
			}
		}
		if stop := k.stops.Load(); stop != nil {
			(*stop)()
		}
		if err := k.err.Load(); err != nil {
			yield(zfsctl.Dataset{}, *err)
		}
	}
}

func (k *fakeKernel) Snapshots(string) iter.Seq2[zfsctl.Dataset, error] {
	return func(func(zfsctl.Dataset, error) bool) {}
}

func (k *fakeKernel) Close() error { return nil }

// newFake returns a control of a kernel, and the directory that has the state of the pool.
func newFake(t *testing.T, k kernel) (c *control, dir string) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/pool", 0o700))
	setState(t, dir, "ONLINE")
	return &control{kernel: k, pool: "pool", kstats: dir, patience: 100 * time.Millisecond, grace: testfs.Patience, lockFor: testfs.Patience}, dir
}

func setState(t *testing.T, dir, state string) {
	t.Helper()
	assert.NoError(t, os.WriteFile(dir+"/pool/state", []byte(state+"\n"), 0o600)) // also in goroutines
}

// cancelledAt returns a context that ends when begun is closed.
func cancelledAt(t *testing.T, begun <-chan struct{}) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		select {
		case <-begun:
		case <-ctx.Done():
		}
	}()
	t.Cleanup(cancel)
	return ctx
}

// refused is an error of the kernel.
func refused(errno unix.Errno) error {
	return &zfsctl.Error{Op: "create", Name: "pool/new", Err: errno}
}

// TestOutcomeOfCall: the result of a call that changes something counts, even if the context has ended.
func TestOutcomeOfCall(t *testing.T) {
	for name, test := range map[string]struct {
		result error
		lost   bool
	}{
		"succeeds":                   {nil, false},
		"fails":                      {refused(unix.ENOSPC), false},
		"is interrupted":             {refused(unix.EINTR), true},
		"has no room for its answer": {refused(unix.ENOMEM), true},
		"has a malformed answer":     {fmt.Errorf("zfs create: %w", nvlist.ErrMalformed), true},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newFake(t, nil)
			c.patience = testfs.Patience
			begun := make(chan struct{})
			err := c.change(cancelledAt(t, begun), "create", func(kernel) error {
				close(begun)
				time.Sleep(50 * time.Millisecond)
				return test.result
			})
			require.ErrorIs(t, err, test.result)
			assert.Equal(t, test.lost, isLost(err))
			assert.Equal(t, test.result != nil && !test.lost, isRefused(err))
		})
	}
}

// TestSuspendedInBetween: the pool is suspended after the call has begun, and the kernel refuses it.
func TestSuspendedInBetween(t *testing.T) {
	c, dir := newFake(t, nil)
	err := c.change(t.Context(), "create", func(kernel) error {
		setState(t, dir, "SUSPENDED")
		return refused(unix.EAGAIN)
	})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "zpool clear")
	setState(t, dir, "ONLINE")
	err = c.change(t.Context(), "create", func(kernel) error { return refused(unix.EAGAIN) })
	require.ErrorIs(t, err, unix.EAGAIN)
}

// TestCallNotBegun: a call does not begin if its context has ended, or on a pool that takes none.
func TestCallNotBegun(t *testing.T) {
	c, dir := newFake(t, nil)
	call := func(kernel) error { panic("called") }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.change(ctx, "create", call), context.Canceled)
	setState(t, dir, "SUSPENDED")
	require.ErrorContains(t, c.change(t.Context(), "create", call), "zpool clear")
	require.NoError(t, os.Remove(dir+"/pool/state"))
	err := c.change(t.Context(), "create", call)
	require.ErrorContains(t, err, "zpool import")
	assert.False(t, isLost(err))
	copying := func(_ kernel, f *os.File) error { panic("called") }
	require.ErrorContains(t, c.output(t.Context(), "send", 0, copying, func(r io.Reader) error { _, err := io.ReadAll(r); return err }), "zpool import")
	require.ErrorContains(t, c.input(t.Context(), strings.NewReader("x"), copying), "zpool import")
}

// TestCallDoesNotEnd: a call that does not end is left to itself.
func TestCallDoesNotEnd(t *testing.T) {
	c, dir := newFake(t, nil)
	begun, end := make(chan struct{}), make(chan struct{})
	wait := func(kernel) error {
		close(begun)
		<-end
		return nil
	}
	err := c.change(cancelledAt(t, begun), "create", wait)
	var lost *lostError
	require.ErrorAs(t, err, &lost)
	require.ErrorIs(t, err, context.Canceled)
	assert.True(t, lost.left)
	select {
	case <-lost.ended:
		require.Fail(t, "it has not ended")
	default:
	}
	close(end)
	testfs.Receive(t, lost.ended)

	begun, end = make(chan struct{}), make(chan struct{})
	defer close(end)
	err = c.change(t.Context(), "create", func(k kernel) error {
		return errors.Join(os.WriteFile(dir+"/pool/state", []byte("SUSPENDED\n"), 0o600), wait(k))
	})
	require.ErrorContains(t, err, "zpool clear")
	assert.True(t, isLost(err))
}

// TestReadIsLeft: a call that changes nothing is left to itself as soon as its context ends.
func TestReadIsLeft(t *testing.T) {
	c, _ := newFake(t, nil)
	c.patience = testfs.Patience
	begun, end := make(chan struct{}), make(chan struct{})
	defer close(end)
	_, err := read(cancelledAt(t, begun), c, "list", func(kernel) (int, error) {
		close(begun)
		<-end
		return 1, nil
	})
	require.ErrorIs(t, err, context.Canceled)
	assert.False(t, isLost(err))
}

// TestProbe: opening a home does not wait for ever for a kernel that does not answer, as while a pool is being imported.
func TestProbe(t *testing.T) {
	c, dir := newFake(t, nil)
	end := make(chan struct{})
	defer close(end)
	stuck := func() error { <-end; return nil }
	err := c.probe(t.Context(), 50*time.Millisecond, stuck)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "zpool list")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.probe(ctx, time.Hour, stuck), context.DeadlineExceeded)
	setState(t, dir, "SUSPENDED")
	require.ErrorContains(t, c.probe(t.Context(), time.Hour, func() error { panic("called") }), "zpool clear")
	setState(t, dir, "ONLINE")
	require.NoError(t, c.probe(t.Context(), time.Hour, func() error { return nil }))
	unknown := fault.New(errdefs.ErrFailedPrecondition, "it does not answer as OpenZFS")
	err = c.probe(t.Context(), time.Hour, func() error { return unknown })
	require.ErrorIs(t, err, graphdriver.ErrPrerequisites)
	require.ErrorContains(t, err, unknown.Error())
}

// TestExistsIsLeft: the question whether a dataset exists ends with its context.
func TestExistsIsLeft(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	c, _ := newFake(t, &stuckKernel{end: end})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.exists(ctx, "pool/a")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// stuckKernel answers no question before end is closed.
type stuckKernel struct {
	kernel
	end   <-chan struct{}
	begun chan<- struct{} // told of each question; nil: nobody is
}

func (k *stuckKernel) Exists(string) (bool, error) {
	if k.begun != nil {
		k.begun <- struct{}{}
	}
	<-k.end
	return false, nil
}

// TestCallsAreBounded: callers that go away leave only so many calls behind. Then no call begins, until some have ended.
func TestCallsAreBounded(t *testing.T) {
	begun, end := make(chan struct{}, maxLeft+1), make(chan struct{})
	c, _ := newFake(t, &stuckKernel{begun: begun, end: end})
	c.patience = 0
	b := &Backend{zfs: c}
	for range maxLeft {
		_, err := c.exists(cancelledAt(t, begun), "pool/a")
		require.ErrorIs(t, err, context.Canceled)
	}
	assert.Equal(t, maxLeft, b.Left())
	for range 3 {
		_, err := c.exists(t.Context(), "pool/a")
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "have not ended")
		err = c.change(t.Context(), "create", func(kernel) error { panic("called") })
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		assert.False(t, isLost(err))
	}
	close(end)
	require.Eventually(t, func() bool { return b.Left() == 0 }, testfs.Patience, time.Millisecond)
	_, err := c.exists(t.Context(), "pool/a")
	require.NoError(t, err)

	// Callers that come at once, and wait.
	end = make(chan struct{})
	c.kernel = &stuckKernel{end: end}
	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan error, 2*maxCalls)
	for range cap(refused) {
		go func() { refused <- second(c.exists(ctx, "pool/a")) }()
	}
	for range maxCalls {
		require.ErrorContains(t, testfs.Receive(t, refused), "are under way")
	}
	cancel()
	for range maxCalls {
		require.ErrorIs(t, testfs.Receive(t, refused), context.Canceled)
	}
	close(end)
	require.Eventually(t, func() bool {
		c.calls.mu.Lock()
		defer c.calls.mu.Unlock()
		return c.calls.left == 0 && c.calls.count == 0
	}, testfs.Patience, time.Millisecond)
}

// TestLater: the steps after a call have some time after its context has ended, and not for ever.
func TestLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &control{grace: time.Minute}
		reason := errors.New("reason")
		ctx, cancel := context.WithCancelCause(t.Context())
		later, done := c.later(ctx)
		defer done()
		time.Sleep(time.Hour)
		require.NoError(t, later.Err(), "the request is under way")
		cancel(reason)
		time.Sleep(59 * time.Second)
		require.NoError(t, later.Err())
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, context.Cause(later), reason)

		later, done = c.later(ctx)
		time.Sleep(time.Second)
		require.NoError(t, later.Err(), "it began after the end of the request")
		done()
		require.Error(t, later.Err())
	})
}

// TestStreams: errors of either end reach the caller, and either end may be slow, or end never.
func TestStreams(t *testing.T) {
	broken := errors.New("broken")
	c, _ := newFake(t, nil)
	c.patience = testfs.Patience
	ctx := t.Context()
	readAll := func(_ kernel, f *os.File) error {
		_, err := io.ReadAll(f)
		return errors.Join(err, refused(unix.EINVAL))
	}
	write := func(_ kernel, f *os.File) error {
		_, err := f.WriteString("stream")
		return err
	}
	writeMuch := func(_ kernel, f *os.File) error {
		for {
			if _, err := f.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
	}
	copyTo := func(w io.Writer) func(io.Reader) error {
		return func(r io.Reader) error { _, err := io.Copy(w, r); return err }
	}

	require.ErrorIs(t, c.input(ctx, io.MultiReader(strings.NewReader("x"), failing{broken}), readAll), broken)
	require.ErrorIs(t, c.output(ctx, "send", 0, write, copyTo(failing{broken})), broken)
	require.ErrorIs(t, c.output(ctx, "send", 0, writeMuch, copyTo(failing{broken})), broken)
	slow := &slowWriter{pause: 1500 * time.Millisecond}
	require.NoError(t, c.output(ctx, "send", 0, write, copyTo(slow)))
	assert.Equal(t, "stream", slow.String())
	require.ErrorIs(t, c.output(ctx, "send", 0, func(kernel, *os.File) error { return refused(unix.ENOENT) }, copyTo(io.Discard)), unix.ENOENT)

	readOne := func(_ kernel, f *os.File) error { _, err := f.Read(make([]byte, 1)); return err }
	require.NoError(t, c.input(ctx, strings.NewReader("x"), readOne))
	var after *zfsctl.StreamError
	require.ErrorAs(t, c.input(ctx, strings.NewReader("xy"), readOne), &after)
	assert.Equal(t, zfsctl.Compound, after.Fault)
	require.ErrorIs(t, c.input(ctx, io.MultiReader(strings.NewReader("x"), failing{broken}), readOne), broken)

	r, w := io.Pipe() // r never ends
	read := make(chan struct{})
	require.ErrorIs(t, c.input(cancelledAt(t, read), io.MultiReader(strings.NewReader("x"), r), func(k kernel, f *os.File) error {
		defer close(read)
		return readOne(k, f)
	}), context.Canceled)
	defer w.Close()
	require.ErrorIs(t, c.input(ctx, r, func(kernel, *os.File) error { return refused(unix.EEXIST) }), unix.EEXIST)

	begun := make(chan struct{})
	ended := c.input(cancelledAt(t, begun), r, func(k kernel, f *os.File) error {
		close(begun)
		return readAll(k, f)
	})
	require.ErrorIs(t, ended, context.Canceled)
	assert.False(t, isLost(ended))
	begun = make(chan struct{})
	ended = c.output(cancelledAt(t, begun), "send", 0, func(k kernel, f *os.File) error {
		close(begun)
		return writeMuch(k, f)
	}, copyTo(io.Discard))
	require.ErrorIs(t, ended, context.Canceled)
}

// TestStreamIsLeft: after a stream was left to itself, nothing is written any more.
func TestStreamIsLeft(t *testing.T) {
	c, _ := newFake(t, nil)
	begun, end := make(chan struct{}), make(chan struct{})
	var written bytes.Buffer
	err := c.output(cancelledAt(t, begun), "send", 0, func(_ kernel, f *os.File) error {
		_, _ = f.WriteString("first")
		close(begun)
		<-end
		_, _ = f.WriteString("second")
		return nil
	}, func(r io.Reader) error { _, err := io.Copy(&written, r); return err })
	require.ErrorIs(t, err, context.Canceled)
	close(end)
	assert.NotContains(t, written.String(), "second") // the race detector would report a write meanwhile
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

type slowWriter struct {
	pause time.Duration
	bytes.Buffer
}

func (w *slowWriter) Write(b []byte) (int, error) {
	time.Sleep(w.pause)
	return w.Buffer.Write(b)
}

// fakeIndex returns an index with a counter in dir.
func fakeIndex(t *testing.T, c *control, dir string) *index {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(dir, counterName), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, file.Close()) })
	return &index{ctx: t.Context(), zfs: c, root: "pool", counter: counter{file}, pending: new(pending), log: slog.Default()}
}

// TestIndexBesideBusyProcess: readers get answers while another process changes something all the time.
func TestIndexBesideBusyProcess(t *testing.T) {
	k := oneDataset()
	c, dir := newFake(t, k)
	x, other := fakeIndex(t, c, dir), fakeIndex(t, c, dir)
	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				other.doubt()
			}
		}
	}()
	for range 5 {
		_, ok, err := x.get(ctx, "a")
		require.NoError(t, err)
		assert.True(t, ok)
	}
	close(stop)
	testfs.Receive(t, stopped)
	assert.LessOrEqual(t, int(k.loads.Load()), 10, "a load or two for each")
}

// TestIndexWhileCallIsLeft: while a call may change something at any time, every look is at the pool.
func TestIndexWhileCallIsLeft(t *testing.T) {
	k := oneDataset()
	c, dir := newFake(t, k)
	x := fakeIndex(t, c, dir)
	look := func() {
		_, _, err := x.get(t.Context(), "a")
		require.NoError(t, err)
	}
	look()
	look()
	assert.EqualValues(t, 1, k.loads.Load())
	x.doubtWhile(true)
	look()
	look()
	assert.EqualValues(t, 3, k.loads.Load())
	x.doubtWhile(false)
	look()
	look()
	assert.EqualValues(t, 4, k.loads.Load())
}

// TestIndexWhileCounterIsLocked: another process was stopped while it had the counter locked. Looks answer from memory
// meanwhile, and others are told of changes later.
func TestIndexWhileCounterIsLocked(t *testing.T) {
	k := oneDataset()
	c, dir := newFake(t, k)
	x, other := fakeIndex(t, c, dir), fakeIndex(t, c, dir)
	look := func(x *index) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
		defer cancel()
		_, _, err := x.get(ctx, "a")
		require.NoError(t, err)
	}
	look(x)
	look(other)
	stopped, err := os.OpenFile(filepath.Join(dir, counterName), os.O_RDWR, 0)
	require.NoError(t, err)
	defer stopped.Close()
	require.NoError(t, flock.Exclusive(t.Context(), stopped))
	const n = 30 // if each waited by itself, that would take longer than Patience
	told := make(chan struct{}, n)
	for range n {
		go func() { x.drop("b"); told <- struct{}{} }()
	}
	time.Sleep(100 * time.Millisecond)
	before := k.loads.Load()
	for range 3 {
		look(x)
	}
	assert.Equal(t, before, k.loads.Load(), "from memory")
	require.Eventually(t, func() bool { return len(told) == n }, testfs.Patience, 10*time.Millisecond, "all wait together")
	require.NoError(t, inTime(t, "the next changes do not wait again", func() error {
		for range n {
			x.drop("c")
		}
		return nil
	}))
	require.NoError(t, flock.Unlock(stopped))
	look(x)
	require.Eventually(t, func() bool {
		before := k.loads.Load()
		look(other)
		return k.loads.Load() > before
	}, testfs.Patience, 10*time.Millisecond, "the other is told")
}

// TestCloseWhileCounterIsLocked: a change that others could not be told of in time is told after Close, and the files stay
// open until then. If there are no others, nobody is told.
func TestCloseWhileCounterIsLocked(t *testing.T) {
	a := newActing(t, nil, false, nil)
	other := fakeIndex(t, a.zfs, a.dir)
	told := func() bool {
		before := a.kernel.loads.Load()
		_, _, err := other.get(t.Context(), "a")
		require.NoError(t, err)
		return a.kernel.loads.Load() > before
	}
	told()
	require.False(t, told())
	stopped, err := os.OpenFile(filepath.Join(a.dir, counterName), os.O_RDWR, 0)
	require.NoError(t, err)
	defer stopped.Close()
	require.NoError(t, flock.Exclusive(t.Context(), stopped))

	closing := func() *os.File {
		a.Backend.ctx = t.Context()
		a.closing, a.beginClose = context.WithCancel(t.Context())
		file, err := os.OpenFile(filepath.Join(a.dir, counterName), os.O_RDWR, 0)
		require.NoError(t, err)
		a.volumes.counter = counter{file}
		a.presence, err = namelock.Present(filepath.Join(a.dir, "claims"))
		require.NoError(t, err)
		a.volumes.changes++ // as when the change of the counter took too long
		return file
	}
	isClosed := func(file *os.File) func() bool {
		return func() bool { return errors.Is(second(file.Stat()), os.ErrClosed) }
	}
	file := closing()
	require.NoError(t, a.close(), "alone")
	require.Eventually(t, isClosed(file), testfs.Patience, time.Millisecond)

	beside, err := namelock.Present(filepath.Join(a.dir, "claims"))
	require.NoError(t, err)
	defer func() { assert.NoError(t, beside.Unlock(nil)) }()
	file = closing()
	require.NoError(t, inTime(t, "close", a.close))
	assert.Positive(t, a.pendingNow())
	assert.False(t, isClosed(file)())
	assert.False(t, told())
	require.NoError(t, flock.Unlock(stopped))
	require.Eventually(t, told, testfs.Patience, 10*time.Millisecond)
	require.Eventually(t, isClosed(file), testfs.Patience, time.Millisecond)
}

// TestFree: the space is that of the dataset above the volumes.
func TestFree(t *testing.T) {
	c, _ := newFake(t, availableKernel{})
	free, err := (&Backend{zfs: c, root: "pool/layers"}).Free(t.Context())
	require.NoError(t, err)
	assert.Equal(t, uint64(1234), free)
	_, err = c.free(t.Context(), "pool/other")
	require.ErrorIs(t, err, errdefs.ErrInternal)
	_, err = c.free(t.Context(), "pool/none")
	require.ErrorIs(t, err, unix.ENOENT)
}

// availableKernel has the dataset "pool/layers" with some space, and another that does not tell.
type availableKernel struct{ kernel }

func (availableKernel) Stats(name string) (zfsctl.Dataset, error) {
	switch name {
	case "pool/layers":
		return zfsctl.Dataset{Name: name, Properties: zfsctl.Properties{"available": nvlist.List{"value": uint64(1234)}}}, nil
	case "pool/other":
		return zfsctl.Dataset{Name: name}, nil
	}
	return zfsctl.Dataset{}, refused(unix.ENOENT)
}
