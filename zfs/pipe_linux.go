package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// No signal mask prevents a stop of the process, as by SIGSTOP or a frozen cgroup. After a stop, the kernel begins a call
// that waits for a pipe anew, with the same descriptor, and nobody is told. So once the kernel has written something, the
// descriptor stands for another pipe, from which nobody reads. The call that writes has its pipe already, and a call that
// begins anew fails. A call that began anew before that is found in the beginning of the output.

// errRepeated says that a call has begun anew, and would have repeated its output.
var errRepeated = fault.New(errdefs.ErrUnavailable, "the process was stopped meanwhile, and the output is not whole: try again: %w", unix.EINTR)

// outputPipe is a pipe into which the kernel writes.
type outputPipe struct {
	r, w   *os.File
	broken *os.File // the write end of a pipe from which nobody reads
	size   int      // bytes that the pipe holds

	mu    sync.Mutex
	ended bool // the call has ended, and w is closed
}

func newOutputPipe() (*outputPipe, error) {
	var ends, none [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	size, err := unix.FcntlInt(uintptr(ends[0]), unix.F_GETPIPE_SZ, 0)
	// Closing r ends a read. The write end must block.
	if err := errors.Join(err, unix.SetNonblock(ends[0], true), unix.Pipe2(none[:], unix.O_CLOEXEC)); err != nil {
		return nil, errors.Join(err, unix.Close(ends[0]), unix.Close(ends[1]))
	}
	_ = unix.Close(none[0])
	file := func(fd int) *os.File { return os.NewFile(uintptr(fd), "pipe") }
	return &outputPipe{r: file(ends[0]), w: file(ends[1]), broken: file(none[1]), size: size}, nil
}

// end closes the write end: the call has ended, or will not begin.
func (p *outputPipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	_ = p.w.Close()
}

// waitForOutput waits until there is output, or the call has ended.
func (p *outputPipe) waitForOutput() error {
	conn, err := p.r.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = conn.Read(func(fd uintptr) (ready bool) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		n, pollErr = eintr.Retry(func() (int, error) { return unix.Poll(fds, 0) })
		return n > 0 || pollErr != nil
	})
	return errors.Join(err, pollErr)
}

// breakOff makes a call that begins from now on fail.
func (p *outputPipe) breakOff() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	return eintr.Ignore(func() error { return unix.Dup3(int(p.broken.Fd()), int(p.w.Fd()), unix.O_CLOEXEC) })
}

// once waits for output, and returns a reader of it. Returns errRepeated if the call has begun anew already. The first bytes
// of the output, beginning in number, must not come again. If that is 0, the reader of the output finds a repetition.
func (p *outputPipe) once(beginning int) (io.Reader, error) {
	if err := p.waitForOutput(); err != nil {
		return nil, err
	}
	if err := p.breakOff(); err != nil {
		return nil, err
	}
	if beginning == 0 {
		return p.r, nil
	}
	// Calls that have begun before have written no more than the pipe holds, and the first write of the last one follows.
	head, err := io.ReadAll(io.LimitReader(p.r, int64(p.size+beginning)))
	if err != nil {
		return nil, err
	}
	if len(head) >= beginning && bytes.Count(head, head[:beginning]) > 1 {
		return nil, errRepeated
	}
	return io.MultiReader(bytes.NewReader(head), p.r), nil
}

// output makes a call that writes to a pipe, and gives the other end to read. The end of ctx ends the call. The error of
// read counts if it has made the call fail. Once the first byte was written, a call that is interrupted fails with unix.EINTR.
// beginning is that of outputPipe.once.
func (c *control) output(ctx context.Context, op string, beginning int, call func(k kernel, to *os.File) error, read func(io.Reader) error) error {
	pipe, err := newOutputPipe()
	if err != nil {
		return err
	}
	defer pipe.broken.Close()
	defer pipe.end()
	defer pipe.r.Close()
	defer context.AfterFunc(ctx, func() { _ = pipe.r.Close() })()
	var readErr error
	wasRead := make(chan struct{})
	go func() {
		defer close(wasRead)
		var r io.Reader
		if r, readErr = pipe.once(beginning); readErr == nil {
			readErr = read(r)
		}
		_ = pipe.r.Close() // the call fails if it still writes
	}()
	err = c.run(ctx, op, c.patience, func(k kernel) error {
		defer pipe.end()
		return call(k, pipe.w)
	})
	var lost *lostError
	if errors.As(err, &lost) {
		_ = pipe.r.Close()
		<-wasRead
		return lost.err
	}
	pipe.end() // the call may not have begun
	<-wasRead
	switch {
	case ctx.Err() != nil && (err != nil || readErr != nil):
		return context.Cause(ctx)
	case readErr != nil && (err == nil || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR)):
		return readErr
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR): // somebody was reading
		return fmt.Errorf("%w: %w", errRepeated, err)
	}
	return err
}

// input makes a call that receives a stream from a pipe, and feeds in into the pipe. The end of ctx ends the stream.
// If the call fails, nothing waits for in, which may never end, and an error of in counts if it has made the call fail. If the
// call succeeds, in has to end too. Returns a *zfsctl.StreamError if bytes follow those that the call has read.
func (c *control) input(ctx context.Context, in io.Reader, call func(k kernel, from *os.File) error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	failed := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, in)
		if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, os.ErrClosed) { // not the pipe
			failed <- err
		}
		_ = w.Close()
	}()
	called := make(chan struct{})
	err = c.change(ctx, "receive", func(k kernel) error {
		defer close(called)
		return call(k, r)
	})
	if isLost(err) {
		_ = w.Close()
		go func() {
			<-called
			_ = r.Close()
		}()
		return err
	}
	more := 0
	if err == nil {
		more, _ = r.Read(make([]byte, 1)) // an error of in is in failed before the pipe ends
	}
	_ = r.Close()
	switch {
	case (err != nil || more == 0) && ctx.Err() != nil:
		err = context.Cause(ctx)
	case more > 0:
		return &zfsctl.StreamError{Fault: zfsctl.Compound, Err: errors.New("it has data after its end")}
	}
	select {
	case readErr := <-failed:
		var stream *zfsctl.StreamError
		if errors.As(err, &stream) && stream.Fault == zfsctl.Truncated { // by the error, and not by its sender
			return fmt.Errorf("read the stream: %w", readErr)
		}
		return errors.Join(readErr, err)
	default:
		return err
	}
}
