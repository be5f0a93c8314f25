package zfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/admintool"
)

// patience is for how long a command that should end is waited for.
const patience = 10 * time.Second

// commands runs zfs, the only program that the package runs but for what Status asks. Its methods are safe for
// concurrent use.
type commands struct {
	path     string
	pool     string
	kstats   string // where the kernel module shows what it does, a directory per pool
	patience time.Duration
	running  *os.File      // inherited by the processes; see awaitOrphans
	runs     atomic.Uint64 // how many processes were started
}

func newCommands(pool string) (*commands, error) {
	path, err := admintool.Look("zfs")
	return &commands{path: path, pool: pool, kstats: "/proc/spl/kstat/zfs", patience: patience}, err
}

// process is one run of zfs.
type process struct {
	args []string
	in   io.Reader
	out  io.Writer
	// inherits are files that the process keeps open, and so locked, even if this process is killed.
	inherits []*os.File
	// kill says that the process is killed when the context ends: it changes nothing, or what it changes is undone.
	// Any other is left to end by itself: in the kernel, a signal would not undo anything.
	kill bool
}

// read runs a zfs that changes nothing, and returns what it has written.
func (c *commands) read(ctx context.Context, args ...string) ([]byte, error) {
	var out bytes.Buffer
	if err := c.run(ctx, process{args: args, out: &out, kill: true}); err != nil {
		return nil, err // the process may be writing to out
	}
	return out.Bytes(), nil
}

// change runs a zfs that changes something, and returns what it has written. Once it has been started, its own result
// counts, and not what becomes of ctx meanwhile. *lostError: what it has done is not known.
func (c *commands) change(ctx context.Context, inherits []*os.File, in io.Reader, args ...string) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var out bytes.Buffer
	if err := c.run(ctx, process{args: args, in: in, out: &out, inherits: inherits}); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// run runs zfs. *commandError: it says that it has failed. *lostError: what it has done is not known. Any other error:
// it has done nothing, or was killed because ctx has ended.
//
// A command waits in the kernel while its pool is suspended, where no signal reaches it. It is then left to itself. The
// same when ctx has ended and the command does not.
func (c *commands) run(ctx context.Context, p process) error {
	if err := c.checkPool(); err != nil {
		return err
	}
	cmd := exec.Command(c.path, p.args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.ExtraFiles = append([]*os.File{c.running}, p.inherits...)
	// In a process group of its own, signals from a terminal do not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var out leavableWriter
	if p.out != nil {
		out.w = p.out
		cmd.Stdout = &out
	}
	inErr, err := feed(cmd, p.in)
	if err != nil {
		return err
	}
	c.runs.Add(1)
	if err := cmd.Start(); err != nil {
		return err
	}
	waited := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		waited <- cmd.Wait()
		close(ended)
	}()
	hasEnded, err := c.await(ctx, cmd.Process, p.kill, waited)
	if !hasEnded {
		out.leave()
		return &lostError{args: p.args, err: err, left: true, ended: ended}
	}
	select {
	case readErr := <-inErr:
		err = errors.Join(readErr, err)
	default:
	}
	signaled := isSignaled(cmd.ProcessState)
	switch {
	case err == nil:
		return nil
	case signaled && p.kill && ctx.Err() != nil:
		return context.Cause(ctx)
	case signaled && !p.kill:
		return &lostError{args: p.args, err: err, ended: ended}
	}
	said := string(bytes.TrimSpace(stderr.Bytes()))
	return &commandError{args: p.args, stderr: said, err: errors.Join(out.err, err)}
}

func isSignaled(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// feed has a command that is about to be started read in. What in failed with is in the channel before the command
// hears that in has ended. Nothing waits for in, which may never end.
func feed(cmd *exec.Cmd, in io.Reader) (<-chan error, error) {
	failed := make(chan error, 1)
	if in == nil {
		return failed, nil
	}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	go func() {
		_, err := io.Copy(pipe, in)
		if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, os.ErrClosed) { // it has ended before in
			failed <- err
		}
		_ = pipe.Close()
	}()
	return failed, nil
}

// leavableWriter writes to w until that was left, and then nowhere.
type leavableWriter struct {
	mu  sync.Mutex
	w   io.Writer // nil: left
	err error     // what w has failed with
}

func (l *leavableWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		return len(b), nil
	}
	n, err := l.w.Write(b)
	if l.err == nil {
		l.err = err
	}
	return n, err
}

// leave returns when nothing writes to w any more.
func (l *leavableWriter) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = nil
}

// await waits for a command to end, and returns its error. hasEnded is false if that cannot be waited for, for the
// reason that err gives.
func (c *commands) await(ctx context.Context, process *os.Process, kill bool, waited <-chan error) (hasEnded bool, err error) {
	poll := time.NewTicker(time.Second)
	defer poll.Stop()
	cancelled := ctx.Done()
	var giveUp <-chan time.Time
	for {
		select {
		case err := <-waited:
			return true, err
		case <-poll.C:
			if err := c.checkPool(); err != nil {
				return false, err
			}
		case <-cancelled:
			cancelled = nil
			if kill {
				_ = process.Kill() // it may have ended
			}
			giveUp = time.After(c.patience)
		case <-giveUp:
			return false, context.Cause(ctx)
		}
	}
}

// checkPool reports, without running anything, whether the pool is there and takes writes.
// errdefs.ErrUnavailable: it is not there or does not.
func (c *commands) checkPool() error {
	state, err := os.ReadFile(filepath.Join(c.kstats, c.pool, "state"))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.New(errdefs.ErrUnavailable, "the pool %s is not imported: run \"zpool import %[1]s\"", c.pool)
	case err != nil:
		return err
	case string(bytes.TrimSpace(state)) == "SUSPENDED":
		return fault.New(errdefs.ErrUnavailable, "the pool %s is suspended after errors of its devices: run \"zpool status %[1]s\", bring them back, then run \"zpool clear %[1]s\"", c.pool)
	}
	return nil
}

// commandError is a run of zfs that failed, with what it said.
type commandError struct {
	args   []string
	stderr string
	err    error
}

func (e *commandError) Error() string {
	// The first argument says what was asked; the rest may be long, and what zfs says names the dataset.
	if e.stderr == "" {
		return "zfs " + e.args[0] + ": " + e.err.Error()
	}
	return "zfs " + e.args[0] + ": " + e.stderr
}

func (e *commandError) Unwrap() error { return e.err }

// lostError is a run of zfs of which it is not known what it has done: it was killed, or it does not end.
type lostError struct {
	args  []string
	err   error
	left  bool            // it had not ended when the error was made
	ended <-chan struct{} // closed when it has
	// settled is closed after that, when what it has done was looked at. nil: nothing has been left to itself.
	settled <-chan struct{}
}

func (e *lostError) Error() string {
	if e.left {
		return "zfs " + e.args[0] + ": does not end: " + e.err.Error()
	}
	return "zfs " + e.args[0] + ": was interrupted: " + e.err.Error()
}

func (e *lostError) Unwrap() error { return e.err }

func isLost(err error) bool {
	var lost *lostError
	return errors.As(err, &lost)
}
