package soak

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cowshed/cowshed/internal/testfs"
)

// buildProgram builds the command cowshed, with options of go build.
func buildProgram(t testing.TB, program string, options ...string) string {
	t.Helper()
	args := slices.Concat([]string{"build", "-o", program}, options, []string{"github.com/cowshed/cowshed/cmd/cowshed"})
	out, err := exec.Command("go", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// buildDaemon builds the program that the daemon runs: with the race detector if the test has it.
func buildDaemon(t testing.TB, dir string) string {
	t.Helper()
	if raced() {
		return buildProgram(t, filepath.Join(dir, "daemon"), "-race")
	}
	return buildProgram(t, filepath.Join(dir, "daemon"))
}

// raced says whether the test has the race detector.
func raced() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}

// daemon is a process of "cowshed serve", and after it was killed another.
type daemon struct {
	program, root, dir string
	quota              string // the mode that it may turn on

	mu     sync.Mutex // serializes starts, stops and signals
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	asked  bool          // it was killed or stopped by us
	failed func(error)   // told when it ends without having been asked to
}

func (d *daemon) socket(name string) string { return filepath.Join(d.dir, name+".sock") }
func (d *daemon) logFile() string           { return filepath.Join(d.dir, "daemon.log") }

// start starts the process and waits until it answers.
func (d *daemon) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.startLocked()
}

func (d *daemon) startLocked() error {
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.program, "serve", "--root", d.root, "--state", d.dir, "--config", os.DevNull, "--driver", "btrfs",
		"--storage-opt", "btrfs.quota="+d.quota, "--address", d.socket("cowshed"),
		"--containerd-address", d.socket("containerd"), "--metrics", "unix://"+d.socket("metrics"), "--log-level", "warn")
	cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	d.cmd, d.ended, d.asked = cmd, ended, false
	go func() {
		err := cmd.Wait()
		close(ended)
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.cmd == cmd && !d.asked {
			d.failed(fmt.Errorf("the daemon ended by itself: %w", err))
		}
	}()
	return d.waitReady(ended)
}

func (d *daemon) waitReady(ended <-chan struct{}) error {
	conn, err := d.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testfs.Patience)
	defer cancel()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, err = healthapi.NewHealthClient(conn).Check(ctx, &healthapi.HealthCheckRequest{})
	if err != nil {
		return fmt.Errorf("the daemon does not start: %w", err)
	}
	return nil
}

// dial connects to the daemon. Calls wait while it is not there.
func (d *daemon) dial() (*grpc.ClientConn, error) {
	quick := backoff.DefaultConfig
	quick.BaseDelay, quick.MaxDelay = 20*time.Millisecond, 200*time.Millisecond
	return grpc.NewClient("unix://"+d.socket("cowshed"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
}

// restart ends the process with a signal, SIGKILL or SIGTERM, and starts another.
func (d *daemon) restart(by syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.endLocked(by); err != nil {
		return err
	}
	return d.startLocked()
}

// stop stops the process for good.
func (d *daemon) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endLocked(syscall.SIGTERM)
}

func (d *daemon) endLocked(by syscall.Signal) error {
	d.asked = true
	if err := d.cmd.Process.Signal(by); err != nil {
		return err
	}
	select {
	case <-d.ended:
	case <-time.After(testfs.Patience):
		d.abort()
		return fmt.Errorf("the daemon does not end on %v", by)
	}
	if code := d.cmd.ProcessState.ExitCode(); by == syscall.SIGTERM && code != 0 && code != 128+int(by) {
		return fmt.Errorf("stopped by %v the daemon exits with %d", by, code)
	}
	return nil
}

// abort has the process print its stacks and end.
func (d *daemon) abort() {
	_ = d.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-d.ended:
	case <-time.After(testfs.Patience):
		_ = d.cmd.Process.Kill()
		<-d.ended
	}
}

// running says whether the process has not ended.
func (d *daemon) running() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// signal sends a signal that means nothing to the daemon.
func (d *daemon) signal(s syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cmd.Process.Signal(s)
}

// size is a daemon's use of the machine.
type size struct {
	pid                     int
	goroutines, descriptors int
	memory                  int // bytes
}

// size asks the daemon for it.
func (d *daemon) size() (size, error) {
	page, err := d.metrics()
	if err != nil {
		return size{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := size{pid: d.cmd.Process.Pid, goroutines: int(page["go_goroutines"]), memory: int(page["process_resident_memory_bytes"])}
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(s.pid) + "/fd")
	s.descriptors = len(entries)
	return s, err
}

// metrics reads the metrics that have no labels.
func (d *daemon) metrics() (map[string]float64, error) {
	client := http.Client{Timeout: testfs.Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.socket("metrics"))
		},
	}}
	response, err := client.Get("http://daemon/metrics")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	page := make(map[string]float64)
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if number, err := strconv.ParseFloat(value, 64); err == nil {
			page[name] = number
		}
	}
	return page, lines.Err()
}
