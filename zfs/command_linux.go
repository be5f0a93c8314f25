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

// patience is how long a zfs process may take to end after its context has ended. Then it is left to itself.
const patience = 10 * time.Second

// commands runs zfs. The package runs no other programs, except those of Status. The methods of commands are safe for
// concurrent use.
type commands struct {
	path     string
	pool     string
	kstats   string // where the kernel module shows its statistics, with a directory per pool
	patience time.Duration
	running  *os.File      // inherited by the processes; see awaitOrphans
	runs     atomic.Uint64 // number of processes that were started
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
	// kill says that the end of the context kills the process: it changes nothing, or the caller undoes its changes. A
	// process without kill ends by itself: in the kernel, a signal would undo nothing.
	kill bool
}

// read runs a zfs command that changes nothing, and returns its output.
func (c *commands) read(ctx context.Context, args ...string) ([]byte, error) {
	var out bytes.Buffer
	if err := c.run(ctx, process{args: args, out: &out, kill: true}); err != nil {
		return nil, err // the process may still write to out
	}
	return out.Bytes(), nil
}

// change runs a zfs command that changes something, and returns its output. Once the process has started, its own
// result counts, even if ctx ends meanwhile. Returns a *lostError if the outcome is not known.
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

// run runs zfs. Returns a *commandError if zfs failed, and a *lostError if the outcome is not known. After any other
// error zfs has done nothing, or was killed because ctx has ended.
//
// A command waits in the kernel while its pool is suspended, and no signal reaches it there. It is then left to itself.
// So is a command that does not end although ctx has ended.
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

// feed makes a command that is about to be started read from in. If reading in fails, the error is in the channel
// before the command sees the end of its input. Nothing waits for in, which may never end.
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
		if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, os.ErrClosed) { // not the pipe
			failed <- err
		}
		_ = pipe.Close()
	}()
	return failed, nil
}

// leavableWriter writes to w until leave is called, and discards all later writes.
type leavableWriter struct {
	mu  sync.Mutex
	w   io.Writer // nil: leave was called
	err error     // the first error of w
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

// leave makes later writes go nowhere. It waits for a write to w that is under way.
func (l *leavableWriter) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = nil
}

// await waits for a command to end, and returns its error. hasEnded is false if await gives up, for the reason that err
// gives.
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
				_ = process.Kill() // fails if it has ended
			}
			giveUp = time.After(c.patience)
		case <-giveUp:
			return false, context.Cause(ctx)
		}
	}
}

// checkPool reports, without running anything, whether the pool is imported and accepts writes. Returns
// errdefs.ErrUnavailable if it is not imported, or is suspended.
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

// commandError is a failed run of zfs, with its error messages.
type commandError struct {
	args   []string
	stderr string
	err    error
}

func (e *commandError) Error() string {
	// The first argument names the command. The others may be long, and the message of zfs names the dataset.
	if e.stderr == "" {
		return "zfs " + e.args[0] + ": " + e.err.Error()
	}
	return "zfs " + e.args[0] + ": " + e.stderr
}

func (e *commandError) Unwrap() error { return e.err }

// lostError is a run of zfs whose outcome is not known: the process was killed, or does not end.
type lostError struct {
	args  []string
	err   error
	left  bool            // the process had not ended when the error was made
	ended <-chan struct{} // closed when the process has ended
	// settled is closed later, when the outcome has been looked at. nil: no process was left to itself.
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
