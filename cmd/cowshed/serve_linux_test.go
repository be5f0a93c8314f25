package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cowshed/cowshed/internal/testfs"
)

// served is a daemon in a process of its own.
type served struct {
	t      testing.TB
	root   string
	dir    string // sockets
	socket string
	notify *net.UnixConn
	cmd    *exec.Cmd
	log    *bytes.Buffer // to be read after wait
}

// newServed prepares a daemon on a btrfs of its own.
func newServed(t testing.TB) *served {
	t.Helper()
	dir := t.TempDir()
	return &served{
		t: t, root: filepath.Join(testfs.Btrfs(t), "root"), dir: dir, socket: filepath.Join(dir, "cowshed.sock"), notify: notifySocket(t, dir),
	}
}

// notifySocket is where the daemon tells systemd how it is.
func notifySocket(t testing.TB, dir string) *net.UnixConn {
	t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, notify.Close()) })
	return notify
}

func (d *served) command(args ...string) *exec.Cmd {
	d.t.Helper()
	self, err := os.Executable()
	require.NoError(d.t, err)
	cmd := exec.Command(self, append([]string{"serve", "--root", d.root, "--state", d.dir, "--address", d.socket}, args...)...)
	cmd.Env = append(os.Environ(), asProgramEnv+"=1", "NOTIFY_SOCKET="+d.notify.LocalAddr().String())
	d.log = new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	return cmd
}

// start runs the daemon until it says that it is ready.
func (d *served) start(cmd *exec.Cmd) {
	d.t.Helper()
	testfs.Start(d.t, cmd)
	d.cmd = cmd
	d.expect("READY=1")
}

// expect waits for the daemon's message to systemd.
func (d *served) expect(state string) {
	d.t.Helper()
	require.NoError(d.t, d.notify.SetReadDeadline(time.Now().Add(testfs.Patience)))
	message := make([]byte, 256)
	n, err := d.notify.Read(message)
	require.NoError(d.t, err)
	require.Equal(d.t, state, string(message[:n]))
}

// stop sends SIGTERM, on which the daemon ends well.
func (d *served) stop() {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	d.expect("STOPPING=1")
	require.NoError(d.t, testfs.Wait(d.t, d.cmd), "%s", d.log)
}

func (d *served) kill() {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Kill())
	require.Error(d.t, testfs.Wait(d.t, d.cmd))
}

// snapshotter connects to the daemon as containerd does.
func (d *served) snapshotter() (snapshots.Snapshotter, context.Context) {
	d.t.Helper()
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(d.t, err)
	d.t.Cleanup(func() { require.NoError(d.t, conn.Close()) })
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(d.t.Context(), "test"), testfs.Lifetime)
	d.t.Cleanup(cancel)
	answer, err := healthapi.NewHealthClient(conn).Check(ctx, &healthapi.HealthCheckRequest{})
	require.NoError(d.t, err)
	require.Equal(d.t, healthapi.HealthCheckResponse_SERVING, answer.GetStatus())
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed"), ctx
}

func keysOf(t testing.TB, ctx context.Context, s snapshots.Snapshotter) []string {
	t.Helper()
	var keys []string
	require.NoError(t, s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}))
	return keys
}

// TestServeProcess: the daemon starts, refuses another, is killed, starts again, and is stopped.
func TestServeProcess(t *testing.T) {
	testfs.CheckLeaks(t)
	d := newServed(t)
	d.start(d.command())
	s, ctx := d.snapshotter()
	_, err := s.Prepare(ctx, "one", "")
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "image", "one"))
	_, err = s.Prepare(ctx, "two", "image")
	require.NoError(t, err)

	refused := d.command("--address", filepath.Join(d.dir, "other.sock"))
	require.Error(t, testfs.Run(t, refused))
	assert.Equal(t, exitPrecondition, refused.ProcessState.ExitCode())
	assert.Contains(t, d.log.String(), fmt.Sprintf("another daemon (process %d)", d.cmd.Process.Pid))
	// The command's own store is another one, in the same root.
	at{root: d.root}.ok(t, "init", "--driver", "btrfs")
	at{root: d.root}.ok(t, "create", "layer")

	d.kill()
	require.FileExists(t, d.socket, "as a process that is killed leaves it")
	d.start(d.command())
	s, ctx = d.snapshotter()
	assert.Equal(t, []string{"image", "two"}, keysOf(t, ctx, s))
	require.NoError(t, s.Remove(ctx, "two"))
	require.NoError(t, s.Remove(ctx, "image"))
	d.stop()
	assert.NoFileExists(t, d.socket)
	at{root: d.root}.ok(t, "rm", "layer")
}

// TestServeUnderLoad: a daemon that is killed while clients work starts again, with all acknowledged changes.
func TestServeUnderLoad(t *testing.T) {
	testfs.CheckLeaks(t)
	d := newServed(t)
	d.start(d.command())
	s, ctx := d.snapshotter()
	_, err := s.Prepare(ctx, "one", "")
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "image", "one"))
	acknowledged := make(chan string, 1000)
	ended := make(chan struct{})
	for client := range 4 {
		go func() {
			defer func() { ended <- struct{}{} }()
			for n := range 200 {
				key := fmt.Sprintf("%d-%d", client, n)
				if _, err := s.Prepare(ctx, key, "image"); err != nil {
					return
				}
				acknowledged <- key
			}
		}()
	}
	assert.Eventually(t, func() bool { return len(acknowledged) >= 40 }, testfs.Patience, time.Millisecond)
	d.kill()
	for range 4 {
		testfs.Receive(t, ended)
	}
	close(acknowledged)
	d.start(d.command())
	s, ctx = d.snapshotter()
	keys := keysOf(t, ctx, s)
	for key := range acknowledged {
		assert.Contains(t, keys, key)
	}
	for _, key := range keys {
		if key != "image" {
			require.NoError(t, s.Remove(ctx, key))
		}
	}
	require.NoError(t, s.(snapshots.Cleaner).Cleanup(ctx))
	left, err := os.ReadDir(filepath.Join(d.root, "containerd", "btrfs", "subvolumes"))
	require.NoError(t, err)
	assert.Len(t, left, 1)
	d.stop()
}

// TestSocketActivation: a socket that was passed on is served, and is still there after the daemon.
func TestSocketActivation(t *testing.T) {
	testfs.CheckLeaks(t)
	d := newServed(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket, Net: "unix"})
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	passed, err := l.File()
	require.NoError(t, err)
	defer passed.Close()
	for range 2 {
		cmd := d.command("--address", filepath.Join(d.dir, "unused.sock"))
		// The shell's process becomes the daemon's, so that its number is right.
		cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=containerd exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path, err = exec.LookPath("sh")
		require.NoError(t, err)
		cmd.ExtraFiles = []*os.File{passed}
		d.start(cmd)
		s, ctx := d.snapshotter()
		assert.Empty(t, keysOf(t, ctx, s))
		assert.NoFileExists(t, filepath.Join(d.dir, "unused.sock"))
		d.stop()
		assert.FileExists(t, d.socket)
	}
}

// TestServeConfiguration: flags override the file, and errors name the fault.
func TestServeConfiguration(t *testing.T) {
	testfs.CheckLeaks(t)
	d := newServed(t)
	file := filepath.Join(d.dir, "config.toml")
	metrics := filepath.Join(d.dir, "metrics.sock")
	write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	write(fmt.Sprintf("root = '/nonexistent'\nmetrics = 'unix://%s'\nlog_format = 'json'\n", metrics))
	d.start(d.command("--config", file))
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", metrics)
	require.NoError(t, err)
	require.NoError(t, conn.SetDeadline(time.Now().Add(testfs.Patience)))
	_, err = fmt.Fprintf(conn, "GET /metrics HTTP/1.0\r\n\r\n")
	require.NoError(t, err)
	status, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	assert.Contains(t, status, "200 OK")
	require.NoError(t, conn.Close())
	d.stop()
	assert.True(t, strings.HasPrefix(d.log.String(), `{"time":`), "%s", d.log)

	for name, c := range map[string]struct {
		text, says string
		args       []string
	}{
		"unknown key":  {"roots = '/x'\n", `line 1: unknown key "roots"`, nil},
		"wrong flag":   {"", "default_limit", []string{"--default-limit", "many"}},
		"build flag":   {"default_limit = '1G'\n", `build_limit: `, []string{"--build-limit", "1.5.5G"}},
		"wrong style":  {"", `root_style: `, []string{"--root-style", "overlay"}},
		"wrong driver": {"", "driver", []string{"--driver", "overlay2"}},
		"no file":      {"", "no such file", []string{"--config", filepath.Join(d.dir, "none")}},
	} {
		write(c.text)
		r := at{root: d.root}.run(t, append([]string{"serve", "--config", file}, c.args...)...)
		assert.Equal(t, exitUsage, r.code, name)
		assert.Contains(t, r.err, c.says, name)
	}
}
