package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/cowshed/cowshed/internal/testfs"
)

// These times are for an emulated machine beside other work. Elsewhere daemons need a second.
const (
	readyTimeout = 2 * testfs.Patience
	askTimeout   = testfs.Patience / 2 // of one question to a daemon that starts
	stopTimeout  = 2 * testfs.Patience // more than shutdownTimeout
	pollInterval = 10 * time.Millisecond
	slowStart    = 10 * time.Second // a start that the log of the test tells
	tailBytes    = 24 << 10
)

// Spec says how a daemon is run.
type Spec struct {
	// Name is that of its log file, in the host's directory.
	Name string
	// Program is the path of the program, and Args are its arguments.
	Program string
	Args    []string
	// Env is the whole environment.
	Env []string
	// Ready returns nil when the daemon answers. It is asked again until then.
	Ready func(context.Context) error
	// Attempts is how often the program is started at most, if it ends before it is ready. 0 is once.
	Attempts int
	// NoHandler says that SIGTERM ends the program as the kernel does it, so that it has no exit code.
	NoHandler bool
}

// Daemon is a daemon of a host. Its methods are for the goroutine of the test.
type Daemon struct {
	host *Host
	spec Spec
	log  string
	run  *run // nil while it is stopped
}

// run is one process of a daemon.
type run struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait, to be read once done is closed
}

// Start runs a daemon and returns when it is ready. It is stopped when the test ends.
func (h *Host) Start(spec Spec) *Daemon {
	h.t.Helper()
	d := &Daemon{host: h, spec: spec, log: filepath.Join(h.Dir, spec.Name+".log")}
	h.daemons = append(h.daemons, d)
	h.t.Cleanup(func() {
		if d.run != nil {
			d.Stop()
		}
	})
	d.Start()
	return d
}

// Start runs the daemon after Stop or Kill, and returns when it is ready.
func (d *Daemon) Start() {
	t := d.host.t
	t.Helper()
	if d.run != nil {
		t.Fatalf("harness: %s is running", d.spec.Name)
	}
	begun := time.Now()
	for attempt := 1; ; attempt++ {
		r, err := d.spawn()
		if err != nil {
			t.Fatalf("harness: start %s: %v", d.spec.Name, err)
		}
		d.run = r
		err = d.waitReady()
		took := time.Since(begun).Round(time.Millisecond)
		if err == nil {
			if took > slowStart {
				t.Logf("harness: %s was ready after %s", d.spec.Name, took)
			}
			return
		}
		if d.run != nil || attempt >= d.spec.Attempts {
			t.Fatalf("harness: %s is not ready after %s: %v", d.spec.Name, took, err)
		}
		t.Logf("harness: %s was not ready after %s, and is started again: %v", d.spec.Name, took, err)
	}
}

// Stop tells the daemon to end, as a service manager does, and waits until it has. The test fails if the daemon
// ends with an error or takes longer than stopTimeout; it is killed then.
func (d *Daemon) Stop() {
	t := d.host.t
	t.Helper()
	r := d.run
	if r == nil {
		t.Fatalf("harness: %s is not running", d.spec.Name)
	}
	d.run = nil
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("harness: stop %s: %v", d.spec.Name, err)
	}
	select {
	case <-r.done:
		if r.err != nil && !d.spec.NoHandler {
			t.Errorf("harness: %s ended with: %v", d.spec.Name, r.err)
		}
	case <-time.After(stopTimeout):
		t.Errorf("harness: %s did not end in %s", d.spec.Name, stopTimeout)
		r.kill()
	}
}

// Kill ends the daemon with SIGKILL and waits until it is gone.
func (d *Daemon) Kill() {
	t := d.host.t
	t.Helper()
	if d.run == nil {
		t.Fatalf("harness: %s is not running", d.spec.Name)
	}
	d.run.kill()
	d.run = nil
}

// Restart stops the daemon and starts it again.
func (d *Daemon) Restart() {
	d.host.t.Helper()
	d.Stop()
	d.Start()
}

// Pid returns the daemon's process id.
func (d *Daemon) Pid() int { return d.run.cmd.Process.Pid }

// WaitText waits until the file, which may not exist yet, contains the text.
func WaitText(ctx context.Context, file, text string) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		data, err := os.ReadFile(file)
		if err == nil && bytes.Contains(data, []byte(text)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %q in %s: %w; it has %q", text, file, ctx.Err(), data)
		case <-ticker.C:
		}
	}
}

// runTitle is the begin of the line in a log with which the output of a process begins.
const runTitle = "---- run: "

// lastRun returns the output of the last process in a log.
func lastRun(log string) (string, error) {
	text, err := os.ReadFile(log)
	if err != nil {
		return "", err
	}
	return string(text[max(0, bytes.LastIndex(text, []byte(runTitle))):]), nil
}

// Log returns the daemon's output since it was first started.
func (d *Daemon) Log() string {
	d.host.t.Helper()
	data, err := os.ReadFile(d.log)
	if err != nil {
		d.host.t.Fatalf("harness: %v", err)
	}
	return string(data)
}

func (d *Daemon) spawn() (*run, error) {
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Fprintf(log, "%s%s %q\n", runTitle, d.spec.Program, d.spec.Args)

	cmd := exec.Command(d.spec.Program, d.spec.Args...)
	cmd.Env, cmd.Dir = d.spec.Env, d.host.Dir
	cmd.Stdout, cmd.Stderr = log, log
	// A daemon does not outlive a test that is killed. Setpgid: a Ctrl-C is for the test, which cleans up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}

	r := &run{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The signal is sent when the thread that started the process ends, so it is kept until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			r.err = cmd.Wait()
			close(r.done)
		}
	}()
	return r, <-started
}

func (d *Daemon) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := d.ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.run.done:
			state := d.run.cmd.ProcessState
			d.run = nil
			return fmt.Errorf("it ended: %s", state)
		case <-ctx.Done():
			return fmt.Errorf("%w after %s", err, readyTimeout)
		case <-ticker.C:
		}
	}
}

// ask asks the daemon once whether it is ready.
func (d *Daemon) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return d.spec.Ready(ctx)
}

func (r *run) kill() {
	_ = r.cmd.Process.Kill() // it may have ended by itself
	<-r.done
}

// tail returns the end of the daemon's log, with a title.
func (d *Daemon) tail() string {
	f, err := os.Open(d.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	if _, err := f.Seek(max(0, info.Size()-tailBytes), io.SeekStart); err != nil {
		return err.Error()
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("==== log of %s, %d bytes in all\n%s", d.spec.Name, info.Size(), data)
}
