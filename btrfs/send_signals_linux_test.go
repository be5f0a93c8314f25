package btrfs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/testfs"
)

// bigChange makes a volume and a clone, and returns views of both. The two differ so much that a send stream does not
// fit into a pipe.
func bigChange(t *testing.T, b *Backend) (base, top cowcommon.View) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	dir := tree(t, b, "top")
	for i := range 2000 {
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d", i)), []byte("content"), 0o600))
	}
	require.NoError(t, b.Unmount(ctx, "top"))
	var err error
	base, err = b.View(ctx, "base")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, base.Close()) })
	top, err = b.View(ctx, "top")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, top.Close()) })
	return base, top
}

// storm sends unrequested signals to the process, and to each of its threads, until the test ends.
func storm(t *testing.T) {
	t.Helper()
	pid := os.Getpid()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			threads, err := os.ReadDir("/proc/self/task")
			if err != nil {
				t.Errorf("storm: %v", err)
				return
			}
			for _, thread := range threads {
				tid, _ := strconv.Atoi(thread.Name())
				_ = unix.Tgkill(pid, tid, unix.SIGURG) // the thread may have ended
			}
			if err := unix.Kill(pid, unix.SIGWINCH); err != nil {
				t.Errorf("storm: %v", err)
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// slow is a buffer whose Write takes time, so that the pipe before it is full.
type slow struct{ bytes.Buffer }

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	return s.Buffer.Write(p)
}

// TestSendUnderSignals: a signal while the pipe is full must not make the kernel begin the stream anew.
func TestSendUnderSignals(t *testing.T) {
	b := open(t, testfs.Btrfs(t), Options{})
	base, top := bigChange(t, b)
	var quiet bytes.Buffer
	require.NoError(t, b.Send(t.Context(), &quiet, base, top))
	require.Greater(t, quiet.Len(), 128<<10, "more than a pipe holds")
	hints, err := b.Hints(t.Context(), base, top)
	require.NoError(t, err)

	storm(t)
	for range 10 {
		var loud slow
		require.NoError(t, b.Send(t.Context(), &loud, base, top))
		require.Equal(t, quiet.Len(), loud.Len())
		require.True(t, bytes.Equal(quiet.Bytes(), loud.Bytes()))
		again, err := b.Hints(t.Context(), base, top)
		require.NoError(t, err)
		require.Equal(t, hints.Len(), again.Len())
	}
}

// TestSendOfStoppedProcess: no signal mask prevents a stop of the process, as by Ctrl-Z or a frozen cgroup. After a
// stop, the kernel begins a stream anew. Then Send fails, and a diff walks the trees instead of using hints.
func TestSendOfStoppedProcess(t *testing.T) {
	b := open(t, testfs.Btrfs(t), Options{})
	base, top := bigChange(t, b)
	var quiet bytes.Buffer
	require.NoError(t, b.Send(t.Context(), &quiet, base, top))
	hints, err := b.Hints(t.Context(), base, top)
	require.NoError(t, err)

	stopping(t)
	failed := 0
	for range 10 {
		var loud slow
		if err := b.Send(t.Context(), &loud, base, top); err != nil {
			failed++
		} else {
			require.True(t, bytes.Equal(quiet.Bytes(), loud.Bytes()), "no error, so it is whole")
		}
		again, err := b.Hints(t.Context(), base, top)
		if err != nil {
			require.ErrorIs(t, err, treediff.ErrNoHints)
			continue
		}
		require.Equal(t, hints.Len(), again.Len())
	}
	t.Logf("Send failed %d times of 10", failed)
}

// stopping stops this process and continues it, again and again until the test ends. Another process does that, in a group
// of its own. It continues this process after each stop, also when it is told to end meanwhile.
func stopping(t *testing.T) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "go on stopping")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	script := `trap 'kill -CONT "$1"' EXIT; trap 'exit 1' HUP INT QUIT PIPE TERM
		while test -e "$2" && kill -STOP "$1"; do sleep 0.002; kill -CONT "$1"; sleep 0.01; done`
	cmd := exec.Command("sh", "-c", script, "sh", strconv.Itoa(os.Getpid()), file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		assert.NoError(t, os.Remove(file))
		_ = cmd.Wait()
	})
}
