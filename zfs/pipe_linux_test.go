package zfs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// TestRepeatedOutput: output that begins again is no output.
func TestRepeatedOutput(t *testing.T) {
	beginning := randomBytes(zfsctl.BeginSize)
	rest := randomBytes(10 << 10)
	for name, test := range map[string]struct {
		parts    [][]byte
		repeated bool
	}{
		"none":           {nil, false},
		"whole":          {[][]byte{beginning, rest}, false},
		"short":          {[][]byte{beginning[:100]}, false},
		"two beginnings": {[][]byte{beginning, beginning, rest}, true},
		"cut off":        {[][]byte{beginning, rest[:77], beginning, rest}, true},
		"a full pipe":    {[][]byte{beginning, randomBytes(64<<10 - 100 - zfsctl.BeginSize), beginning, rest}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := newOutputPipe()
			require.NoError(t, err)
			defer p.broken.Close()
			defer p.r.Close()
			output := bytes.Join(test.parts, nil)
			wrote := make(chan error, 1)
			fd, err := unix.FcntlInt(p.w.Fd(), unix.F_DUPFD_CLOEXEC, 0) // as the kernel has the pipe
			require.NoError(t, err)
			go func() {
				defer unix.Close(fd)
				for left := output; len(left) > 0; {
					n, err := unix.Write(fd, left)
					if err != nil {
						wrote <- err
						return
					}
					left = left[n:]
				}
				wrote <- nil
			}()
			if len(output) == 0 {
				p.end()
			}
			r, err := p.once(zfsctl.BeginSize)
			if test.repeated {
				require.ErrorIs(t, err, unix.EINTR)
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
				return
			}
			require.NoError(t, err)
			if len(output) > 0 {
				_, err = p.w.Write([]byte("again"))
				require.ErrorIs(t, err, unix.EPIPE, "a call that begins anew fails")
			}
			p.end()
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(output, got))
			require.NoError(t, testfs.Receive(t, wrote))
		})
	}
}

// TestCallBeginsAnew: a call that was interrupted after it had written something begins anew, as the kernel makes it. It takes
// the pipe by its number again, and fails.
func TestCallBeginsAnew(t *testing.T) {
	c, _ := newFake(t, nil)
	stream := randomBytes(256 << 10)
	var got bytes.Buffer
	err := c.output(t.Context(), "send", zfsctl.BeginSize, func(_ kernel, to *os.File) error {
		for range 2 {
			fd, err := unix.FcntlInt(to.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return err
			}
			pipe := os.NewFile(uintptr(fd), "pipe of the kernel")
			_, err = pipe.Write(stream)
			_ = pipe.Close()
			if err != nil {
				return refused(unix.EPIPE)
			}
		}
		return nil
	}, func(r io.Reader) error { _, err := io.Copy(&got, r); return err })
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorIs(t, err, unix.EINTR)
	assert.True(t, bytes.Equal(stream, got.Bytes()), "nothing comes twice: %d bytes", got.Len())
}

// stopAndContinue stops the process that started it, and continues it when all of its threads have stopped, or after a while.
const stopAndContinue = `trap 'kill -CONT $PPID' EXIT
trap 'exit 1' HUP INT QUIT PIPE TERM
kill -STOP $PPID
tries=0
while [ $tries -lt 600 ] && grep -h '^State:' /proc/$PPID/task/*/status | grep -qv 'T (stopped)'; do
	tries=$((tries + 1))
	sleep 0.1
done`

// stopping is a writer that stops this process once, before the first write, and then continues it.
type stopping struct {
	bytes.Buffer
	stopped bool
}

func (w *stopping) Write(b []byte) (int, error) {
	if !w.stopped {
		w.stopped = true
		time.Sleep(500 * time.Millisecond) // the pipe is full now
		if out, err := exec.Command("sh", "-c", stopAndContinue).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return w.Buffer.Write(b)
}

// TestSendOfStoppedProcess: after the process was stopped, the kernel ends a stream in the middle, or begins it anew. Then Send
// fails.
func TestSendOfStoppedProcess(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, b, "base", "file", randomBytes(4<<20))
	require.NoError(t, b.Seal(ctx, "base"))
	v, err := b.View(ctx, "base")
	require.NoError(t, err)
	defer v.Close()
	var whole bytes.Buffer
	require.NoError(t, b.Send(ctx, &whole, nil, v))

	var got stopping
	err = b.Send(ctx, &got, nil, v)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorIs(t, err, unix.EINTR)
	assert.Less(t, got.Len(), whole.Len())
	assert.True(t, bytes.HasPrefix(whole.Bytes(), got.Bytes()), "a part of the stream, and only this")

	var again bytes.Buffer
	require.NoError(t, b.Send(ctx, &again, nil, v), "another try")
	assert.True(t, bytes.Equal(whole.Bytes(), again.Bytes()))
}
