package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// kstats is where the kernel module shows what it does, a directory per pool.
const kstats = "/proc/spl/kstat/zfs"

// commands runs zfs, the only program that the package runs but for what Status asks. Its methods are safe for
// concurrent use.
type commands struct {
	path    string
	pool    string
	running *os.File      // inherited by the processes; see awaitOrphans
	runs    atomic.Uint64 // how many processes were started
}

func newCommands(pool string) (*commands, error) {
	path, err := exec.LookPath("zfs")
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, "zfs"))
	}
	return &commands{path: path, pool: pool}, err
}

// run runs zfs and returns what it has written.
func (c *commands) run(ctx context.Context, args ...string) ([]byte, error) {
	var out bytes.Buffer
	err := c.pipe(ctx, nil, &out, args...)
	return out.Bytes(), err
}

// pipe runs zfs with these for its standard input and output.
//
// A command waits in the kernel while its pool is suspended, where no signal reaches it. It is then left to
// itself, and the error says so. The same when ctx ends, once the command had a second to end of the signal.
func (c *commands) pipe(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
	if err := c.checkPool(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, c.path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.ExtraFiles = []*os.File{c.running}
	cmd.Stdin = in
	cmd.Stdout = out
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	c.runs.Add(1)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	hasEnded, err := c.await(ctx, ended)
	switch {
	case !hasEnded:
		return fmt.Errorf("zfs %s: does not end: %w", strings.Join(args, " "), err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return &commandError{args: args, stderr: string(bytes.TrimSpace(stderr.Bytes())), err: err}
	}
	return nil
}

// await waits for a command to end, and returns its error. hasEnded is false if that cannot be waited for, for the
// reason that err gives.
func (c *commands) await(ctx context.Context, ended <-chan error) (hasEnded bool, err error) {
	poll := time.NewTicker(time.Second)
	defer poll.Stop()
	cancelled := ctx.Done()
	var patience <-chan time.Time
	for {
		select {
		case err := <-ended:
			return true, err
		case <-poll.C:
			if err := c.checkPool(); err != nil {
				return false, err
			}
		case <-cancelled:
			cancelled = nil
			patience = time.After(2 * time.Second)
		case <-patience:
			return false, context.Cause(ctx)
		}
	}
}

// checkPool reports, without running anything, whether the pool is there and takes writes.
// errdefs.ErrUnavailable: it is not there or does not.
func (c *commands) checkPool() error {
	state, err := os.ReadFile(filepath.Join(kstats, c.pool, "state"))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the pool %s is not imported: run \"zpool import %[1]s\": %w", c.pool, errdefs.ErrUnavailable)
	case err != nil:
		return err
	case string(bytes.TrimSpace(state)) == "SUSPENDED":
		return fmt.Errorf("the pool %s is suspended after errors of its devices: run \"zpool status %[1]s\", bring them back, then run \"zpool clear %[1]s\": %w", c.pool, errdefs.ErrUnavailable)
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
