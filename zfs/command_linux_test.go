package zfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeZFS returns commands that run a shell script instead of zfs, in a directory of its own. So a test has faults that
// the real zfs does not produce on demand.
func fakeZFS(t *testing.T, script string) (c *commands, dir string) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/pool", 0o700))
	require.NoError(t, os.WriteFile(dir+"/pool/state", []byte("ONLINE\n"), 0o600))
	require.NoError(t, os.WriteFile(dir+"/zfs", []byte("#!/bin/sh\ncd "+dir+"\n"+script), 0o700))
	running, err := os.Create(dir + "/running")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, running.Close()) })
	return &commands{path: dir + "/zfs", pool: "pool", kstats: dir, patience: 100 * time.Millisecond, running: running}, dir
}

// waitFor waits until a fake has made a file.
func waitFor(t *testing.T, path string) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := os.Stat(path)
		return err == nil
	}, 20*time.Second, time.Millisecond)
}

// cancelledAt returns a context that ends when a file of that path exists.
func cancelledAt(t *testing.T, path string) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if _, err := os.Stat(path); err == nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	t.Cleanup(cancel)
	return ctx
}

// TestOutcomeOfCommand: the result of a command that changes something counts, even if the context has ended.
func TestOutcomeOfCommand(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		check  func(t *testing.T, out []byte, err error)
	}{
		"succeeds": {"touch started; sleep 0.05; echo done", func(t *testing.T, out []byte, err error) {
			require.NoError(t, err)
			assert.Equal(t, "done\n", string(out))
		}},
		"fails": {"touch started; sleep 0.05; echo no >&2; exit 1", func(t *testing.T, _ []byte, err error) {
			assert.True(t, isCommandError(err), err)
			assert.False(t, isLost(err), err)
			assert.ErrorContains(t, err, "no")
		}},
		"is killed": {"touch started; kill -9 $$", func(t *testing.T, _ []byte, err error) {
			var lost *lostError
			require.ErrorAs(t, err, &lost)
			assert.False(t, lost.left)
			<-lost.ended
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := fakeZFS(t, test.script)
			c.patience = 20 * time.Second
			out, err := c.change(cancelledAt(t, dir+"/started"), nil, nil, "create")
			test.check(t, out, err)
		})
	}
	t.Run("not begun", func(t *testing.T) {
		c, dir := fakeZFS(t, "touch started")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := c.change(ctx, nil, nil, "create")
		require.ErrorIs(t, err, context.Canceled)
		assert.NoFileExists(t, dir+"/started")
	})
}

// TestCommandDoesNotEnd: a command that does not end is left to itself, and its output is discarded.
func TestCommandDoesNotEnd(t *testing.T) {
	c, dir := fakeZFS(t, "trap '' TERM; while [ ! -e end ]; do echo line; touch started; sleep 0.01; done; touch ended")
	var written bytes.Buffer
	err := c.run(cancelledAt(t, dir+"/started"), process{args: []string{"create"}, out: &written})
	var lost *lostError
	require.ErrorAs(t, err, &lost)
	require.ErrorIs(t, err, context.Canceled)
	assert.True(t, lost.left)
	// The race detector would report a write meanwhile.
	size := written.Len()
	time.Sleep(50 * time.Millisecond)
	assert.Equal(t, size, written.Len())
	require.NoError(t, os.WriteFile(dir+"/end", nil, 0o600))
	waitFor(t, dir+"/ended")
	<-lost.ended

	c, dir = fakeZFS(t, "while :; do touch started; sleep 0.01; done")
	require.NoError(t, os.Remove(dir+"/pool/state"))
	_, err = c.change(t.Context(), nil, nil, "create")
	require.ErrorContains(t, err, "zpool import")
	assert.NoFileExists(t, dir+"/started")
	assert.False(t, isLost(err), "it was not started")
}

// TestReadIsKilled: a command that changes nothing is killed when its context ends.
func TestReadIsKilled(t *testing.T) {
	c, dir := fakeZFS(t, "touch started; exec sleep 100")
	c.patience = 20 * time.Second
	begun := time.Now()
	_, err := c.read(cancelledAt(t, dir+"/started"), "list")
	require.ErrorIs(t, err, context.Canceled)
	assert.False(t, isLost(err))
	assert.Less(t, time.Since(begun), 15*time.Second)
}

// TestStreams: errors of either end reach the caller, and either end may be slow.
func TestStreams(t *testing.T) {
	broken := errors.New("broken")
	c, _ := fakeZFS(t, "cat >/dev/null; exit 1")
	err := c.run(t.Context(), process{args: []string{"receive"}, in: io.MultiReader(strings.NewReader("x"), failing{broken}), kill: true})
	require.ErrorIs(t, err, broken)
	c, _ = fakeZFS(t, "cat")
	err = c.run(t.Context(), process{args: []string{"send"}, in: strings.NewReader("x"), out: failing{broken}, kill: true})
	require.ErrorIs(t, err, broken)

	c, _ = fakeZFS(t, "echo stream")
	slow := &slowWriter{pause: 1500 * time.Millisecond}
	require.NoError(t, c.run(t.Context(), process{args: []string{"send"}, out: slow, kill: true}))
	assert.Equal(t, "stream\n", slow.String())

	r, w := io.Pipe() // r never ends
	defer w.Close()
	c, _ = fakeZFS(t, "echo 'cannot receive' >&2; exit 1")
	err = c.run(t.Context(), process{args: []string{"receive"}, in: r, kill: true})
	require.ErrorContains(t, err, "cannot receive")
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

// fakeIndex returns an index whose datasets a script lists, with a counter in dir.
func fakeIndex(t *testing.T, c *commands, dir string) *index {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(dir, counterName), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, file.Close()) })
	return &index{ctx: t.Context(), zfs: c, root: "pool", counter: counter{file}, log: slog.Default()}
}

const oneDataset = `printf 'pool\t-\t1\t0\t0\t-\t/pool\npool/a\t-\t1\t0\t0\t1\tlegacy\n'
echo >>loads
`

// TestIndexBesideBusyProcess: readers get answers while another process changes something all the time.
func TestIndexBesideBusyProcess(t *testing.T) {
	c, dir := fakeZFS(t, oneDataset)
	x, other := fakeIndex(t, c, dir), fakeIndex(t, c, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
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
	<-stopped
	loads, err := os.ReadFile(dir + "/loads")
	require.NoError(t, err)
	assert.LessOrEqual(t, len(loads), 10, "a load or two for each")
}

// TestIndexWhileProcessIsLeft: while a zfs process may change something at any time, every look is at the pool.
func TestIndexWhileProcessIsLeft(t *testing.T) {
	c, dir := fakeZFS(t, oneDataset)
	x := fakeIndex(t, c, dir)
	loads := func() int {
		b, err := os.ReadFile(dir + "/loads")
		require.NoError(t, err)
		return len(b)
	}
	look := func() {
		_, _, err := x.get(t.Context(), "a")
		require.NoError(t, err)
	}
	look()
	look()
	assert.Equal(t, 1, loads())
	x.doubtWhile(true)
	look()
	look()
	assert.Equal(t, 3, loads())
	x.doubtWhile(false)
	look()
	look()
	assert.Equal(t, 4, loads())
}
