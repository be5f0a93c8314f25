package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/plugin"
	"github.com/cowshed/cowshed/snapshotter"
)

// testConfig is a configuration with everything in two directories: the root on a btrfs, and one for sockets.
func testConfig(t testing.TB, opts ...testfs.BtrfsOption) Config {
	t.Helper()
	return configOn(t, testfs.Btrfs(t, opts...))
}

// configOn is testConfig on a filesystem that is mounted on mnt.
func configOn(t testing.TB, mnt string) Config {
	t.Helper()
	state := t.TempDir()
	c := Default()
	c.Root = filepath.Join(mnt, "root")
	c.State = state
	c.Address = filepath.Join(state, "cowshed.sock")
	c.ContainerdAddress = filepath.Join(state, "containerd.sock")
	c.DockerSocket = filepath.Join(state, "docker.sock")
	c.DockerSpecDir = filepath.Join(state, "specs")
	c.Metrics = "unix://" + filepath.Join(state, "metrics.sock")
	c.LogLevel = "debug"
	c.StopTimeout.Duration = testfs.Patience
	return c
}

// running is a daemon in this process.
type running struct {
	Config
	t    testing.TB
	log  *bytes.Buffer // to be read after stop
	stop func() error  // stops it and returns the result of Run
}

// start runs a daemon until it is stopped, or the test ends.
func start(t testing.TB, c Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{Config: c, t: t, log: new(bytes.Buffer)}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Run(ctx, c, Options{
			Version: "test",
			Logger:  slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			Ready:   func() { close(ready) },
		})
	}()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return testfs.Result(ended)
	})
	t.Cleanup(func() { require.NoError(t, r.stop()) })
	testfs.Begun(t, ready, ended)
	return r
}

func (r *running) dial() *grpc.ClientConn {
	r.t.Helper()
	conn, err := grpc.NewClient("unix://"+r.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { require.NoError(r.t, conn.Close()) })
	return conn
}

// httpDo asks for a page on a unix socket.
func httpDo(t testing.TB, socket, method, path string) string {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://daemon"+path, http.NoBody)
	require.NoError(t, err)
	response, err := (&http.Client{Transport: transport, Timeout: testfs.Patience}).Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s", text)
	return string(text)
}

// fakeContainerd serves the content store that the differ uses, and notes the namespaces that are asked for.
type fakeContainerd struct {
	mu         sync.Mutex
	namespaces []string
}

func startContent(t testing.TB, address string) *fakeContainerd {
	t.Helper()
	f := &fakeContainerd{}
	store, err := contentstore.Open(t.TempDir())
	require.NoError(t, err)
	note := func(ctx context.Context) {
		namespace, _ := namespaces.Namespace(ctx)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.namespaces = append(f.namespaces, namespace)
	}
	stop, err := contentstore.Serve(store, address,
		grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			note(ctx)
			return handle(ctx, request)
		}),
		grpc.StreamInterceptor(func(s any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			note(stream.Context())
			return handle(s, stream)
		}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stop()) })
	return f
}

// in mounts a snapshotter's mounts and calls f with the directory.
func in(t testing.TB, mounts []mount.Mount, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	defer func() { require.NoError(t, mount.UnmountAll(dir, 0)) }()
	f(dir)
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
}

// TestServe is the life of a layer, as containerd asks for it: unpacked, committed, changed, compared, applied again,
// and removed.
func TestServe(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t, testfs.WithSimpleQuota())
	c.DefaultLimit = "8M"
	containerd := startContent(t, c.ContainerdAddress)
	r := start(t, c)
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	conn := r.dial()

	answer, err := healthapi.NewHealthClient(conn).Check(ctx, &healthapi.HealthCheckRequest{})
	require.NoError(t, err)
	assert.Equal(t, healthapi.HealthCheckResponse_SERVING, answer.GetStatus())
	info, err := os.Stat(c.Address)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
	differ, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(snapshotter.DiffService)
	require.True(t, ok)
	mounts, err := s.Prepare(ctx, "extract-1-Ab_- sha256:abc", "")
	require.NoError(t, err)
	in(t, mounts, func(dir string) { write(t, dir, "big", strings.Repeat("x", 16<<20)) }) // unpacking is not limited
	require.NoError(t, s.Commit(ctx, "image", "extract-1-Ab_- sha256:abc"))
	upper, err := s.Prepare(ctx, "container", "image")
	require.NoError(t, err)
	in(t, upper, func(dir string) {
		write(t, dir, "changed", "by the container")
		much := filepath.Join(dir, "much")
		assert.ErrorIs(t, os.WriteFile(much, make([]byte, 16<<20), 0o644), syscall.EDQUOT)
		require.NoError(t, os.Remove(much))
	})

	lower, err := s.View(ctx, "lower", "image")
	require.NoError(t, err)
	layer, err := differ.Compare(ctx, lower, upper)
	require.NoError(t, err)
	copied, err := s.Prepare(ctx, "extract-2-Ab_- sha256:abc", "image")
	require.NoError(t, err)
	_, err = differ.Apply(ctx, layer, copied)
	require.NoError(t, err)
	in(t, copied, func(dir string) {
		text, err := os.ReadFile(filepath.Join(dir, "changed"))
		require.NoError(t, err)
		assert.Equal(t, "by the container", string(text))
	})
	assert.NotEmpty(t, containerd.namespaces)
	assert.Empty(t, slices.DeleteFunc(containerd.namespaces, func(n string) bool { return n == "k8s.io" }))

	_, err = s.Stat(ctx, "none")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	for _, key := range []string{"lower", "extract-2-Ab_- sha256:abc"} {
		require.NoError(t, s.Remove(ctx, key))
	}

	page := httpDo(t, filepath.Join(c.State, "metrics.sock"), http.MethodGet, "/metrics")
	for _, line := range []string{
		`cowshed_operations_total{operation="prepare",outcome="ok",service="snapshots"} 3`,
		`cowshed_operations_total{operation="stat",outcome="not_found",service="snapshots"} 1`,
		`cowshed_operations_total{operation="diff",outcome="ok",service="diff"} 1`,
		`cowshed_operation_duration_seconds_count{operation="apply",service="diff"} 1`,
		`cowshed_operations_running{service="snapshots"} 0`,
		`cowshed_comparisons_total{reason="",service="snapshots",way="native"} 1`,
		`cowshed_snapshots_prepared_total{use="unpack"} 2`,
		`cowshed_snapshots_prepared_total{use="container"} 1`,
		`cowshed_snapshots_prepared_total{use="build"} 0`,
		`cowshed_configured_limit_bytes{key="default_limit"} 8.388608e+06`,
		`cowshed_layers_total{direction="made",service="diff"} 1`,
		`cowshed_layers_total{direction="applied",service="diff"} 1`,
		`cowshed_layer_bytes_total{direction="made",service="diff"} `,
		`cowshed_volumes{service="snapshots",state="sealed"} 1`,
		`cowshed_volumes{service="snapshots",state="writable"} `,
		`cowshed_volumes_limited{service="snapshots"} 1`,
		`cowshed_volumes_limit_bytes{service="snapshots"} 8.388608e+06`,
		`cowshed_volumes_full{service="snapshots"} `,
		`cowshed_filesystem_bytes{state="available"} `,
		`cowshed_build_info{version="test"} 1`,
		"go_goroutines ",
	} {
		assert.Contains(t, page, "\n"+line)
	}
	assert.NotContains(t, page, `{key="build_limit"}`)
	for _, key := range []string{"container", "image"} {
		require.NoError(t, s.Remove(ctx, key))
	}
	require.NoError(t, s.(snapshots.Cleaner).Cleanup(ctx))
	left, err := os.ReadDir(filepath.Join(c.Root, "containerd", "btrfs", "subvolumes"))
	require.NoError(t, err)
	assert.Empty(t, left)

	require.NoError(t, r.stop())
	for _, socket := range []string{c.Address, filepath.Join(c.State, "metrics.sock")} {
		assert.NoFileExists(t, socket)
	}
	assert.NotContains(t, r.log.String(), "level=ERROR")
}

// TestRetryCleanup: the volume of a removed snapshot that is mounted is reported, and destroyed after it was unmounted. A daemon
// that waits for that stops without waiting.
func TestRetryCleanup(t *testing.T) {
	testfs.CheckLeaks(t)
	r := start(t, testConfig(t))
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	shows := func(doomed int) {
		t.Helper()
		assert.EventuallyWithT(t, func(c *assert.CollectT) {
			page := httpDo(t, filepath.Join(r.State, "metrics.sock"), http.MethodGet, "/metrics")
			assert.Contains(c, page, fmt.Sprintf("\ncowshed_volumes_doomed{service=\"snapshots\"} %d\n", doomed))
			reported, err := ReportedDoomed(r.Config)
			assert.NoError(c, err)
			assert.Len(c, reported, doomed)
		}, testfs.Patience, 50*time.Millisecond)
	}
	removeMounted := func(key string, meanwhile func()) {
		t.Helper()
		mounts, err := s.Prepare(t.Context(), key, "")
		require.NoError(t, err)
		in(t, mounts, func(string) {
			require.NoError(t, s.Remove(t.Context(), key))
			shows(1)
			meanwhile()
		})
	}
	shows(0)
	removeMounted("gone", func() {})
	shows(0)
	left, err := os.ReadDir(filepath.Join(r.Root, "containerd", "btrfs", "subvolumes"))
	require.NoError(t, err)
	assert.Empty(t, left)

	removeMounted("stays", func() { require.NoError(t, r.stop()) })
	assert.NotContains(t, r.log.String(), "nobody waits for it")
	start(t, r.Config)
	shows(0)
}

// TestStopAndStartAgain: committed snapshots exist after a restart.
func TestStopAndStartAgain(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	r := start(t, c)
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	_, err := s.Prepare(ctx, "one", "")
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "image", "one"))
	require.NoError(t, r.stop())

	r = start(t, c)
	s = snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	info, err := s.Stat(ctx, "image")
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindCommitted, info.Kind)
}

func TestSecondIsRefused(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	start(t, c)
	other := c
	other.Address = filepath.Join(c.State, "other.sock")
	err := Run(t.Context(), other, Options{Logger: slog.New(slog.DiscardHandler)})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.ErrorContains(t, err, "another daemon (process ")
	assert.NoFileExists(t, other.Address)

	other = c
	other.Root = filepath.Join(c.Root, "below")
	err = Run(t.Context(), other, Options{Logger: slog.New(slog.DiscardHandler)})
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists, "another root, but the same socket")
}

func TestWhereNothingCanBe(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	c.Root = filepath.Join(t.TempDir(), "root")
	c.Driver = "btrfs"
	require.Error(t, Run(t.Context(), c, Options{Logger: slog.New(slog.DiscardHandler)}))
	c.Driver = "none"
	require.ErrorIs(t, Run(t.Context(), c, Options{Logger: slog.New(slog.DiscardHandler)}), errdefs.ErrInvalidArgument)
	left, err := os.ReadDir(c.Root)
	require.NoError(t, err)
	assert.Empty(t, left, "an embedded store can be made there")
}

// TestStopWaits: a running request may end, and a request that does not end is cancelled.
func TestStopWaits(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	watch := func(r *running) (watch healthapi.Health_WatchClient, end func()) {
		ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
		t.Cleanup(cancel)
		watch, err := healthapi.NewHealthClient(r.dial()).Watch(ctx, &healthapi.HealthCheckRequest{})
		require.NoError(t, err)
		answer, err := watch.Recv()
		require.NoError(t, err)
		assert.Equal(t, healthapi.HealthCheckResponse_SERVING, answer.GetStatus())
		return watch, cancel
	}

	r := start(t, c)
	running, end := watch(r)
	stopped := make(chan error, 1)
	go func() { stopped <- r.stop() }()
	answer, err := running.Recv()
	require.NoError(t, err)
	assert.Equal(t, healthapi.HealthCheckResponse_NOT_SERVING, answer.GetStatus())
	end()
	require.NoError(t, testfs.Receive(t, stopped))
	assert.NotContains(t, r.log.String(), "cancelling requests")

	c.StopTimeout.Duration = 100 * time.Millisecond
	r = start(t, c)
	endless, _ := watch(r)
	require.NoError(t, r.stop())
	for err = nil; err == nil; _, err = endless.Recv() {
	}
	assert.NotEqual(t, codes.DeadlineExceeded, status.Code(err), "the daemon has ended it")
	assert.Contains(t, r.log.String(), "cancelling requests")
}

// docker posts a request of an engine to the plugin.
func docker(t testing.TB, c Config, method, body string) (answer string, status int) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.DockerSocket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://plugin/"+method, strings.NewReader(body))
	require.NoError(t, err)
	response, err := (&http.Client{Transport: transport, Timeout: testfs.Patience}).Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(text), response.StatusCode
}

// TestDockerPlugin: the plugin answers next to containerd's services, in the engine's home. It goes on after a
// restart of the daemon of which the engine does not know.
func TestDockerPlugin(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	c.DockerPlugin = "cowshed-test"
	home := filepath.Join(filepath.Dir(c.Root), "docker", c.DockerPlugin)
	r := start(t, c)
	ok := func(method, body string) string {
		answer, status := docker(t, c, method, body)
		require.Equal(t, http.StatusOK, status, "%s: %s", method, answer)
		return answer
	}
	assert.Contains(t, ok("Plugin.Activate", ""), "GraphDriver")
	spec, err := os.ReadFile(filepath.Join(c.DockerSpecDir, c.DockerPlugin+".spec"))
	require.NoError(t, err)
	assert.Equal(t, "unix://"+c.DockerSocket+"\n", string(spec))

	_, status := docker(t, c, "GraphDriver.Get", `{"ID":"one"}`)
	assert.NotEqual(t, http.StatusOK, status, "before Init")
	ok("GraphDriver.Init", `{"Home":"`+home+`","Opts":["btrfs.min_space=1M"]}`)
	ok("GraphDriver.Create", `{"ID":"one"}`)
	ok("GraphDriver.CreateReadWrite", `{"ID":"two","Parent":"one","StorageOpt":{"size":"10M"}}`)
	ok("GraphDriver.Changes", `{"ID":"two","Parent":"one"}`)
	page := httpDo(t, filepath.Join(c.State, "metrics.sock"), http.MethodGet, "/metrics")
	for _, line := range []string{
		`cowshed_operations_total{operation="create",outcome="ok",service="docker"} 1`,
		`cowshed_operations_total{operation="get",outcome="failed_precondition",service="docker"} 1`,
		`cowshed_comparisons_total{reason="",service="docker",way="native"} 1`,
		`cowshed_volumes{service="docker",state="sealed"} 1`,
		`cowshed_volumes{service="docker",state="writable"} 1`,
		`cowshed_volumes_limited{service="docker"} 1`,
	} {
		assert.Contains(t, page, "\n"+line)
	}
	assert.DirExists(t, filepath.Join(home, "btrfs", "subvolumes", "two"))
	require.NoError(t, r.stop())

	r = start(t, c)
	assert.Contains(t, ok("GraphDriver.Exists", `{"ID":"two"}`), "true")
	ok("GraphDriver.Remove", `{"ID":"two"}`)
	ok("GraphDriver.Remove", `{"ID":"one"}`)
	ok("GraphDriver.Cleanup", `{}`)
	require.NoError(t, r.stop())
	assert.NoFileExists(t, filepath.Join(c.State, "docker-"+c.DockerPlugin+".json"))
}

// TestBuildLimit: snapshots that make images have build_limit, with containerd and with the plugin, and containers
// have not.
func TestBuildLimit(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t, testfs.WithSimpleQuota())
	c.DockerPlugin, c.BuildLimit = "cowshed-test", "8M"
	r := start(t, c)
	ctx := namespaces.WithNamespace(t.Context(), "moby")
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	for key, limited := range map[string]bool{
		"moby/1/zo2wm3h5dsw5v1yoo4iiplkfu": true, "moby/2/extract-1-Ab_- sha256:abc": true, "moby/3/container": false,
	} {
		mounts, err := s.Prepare(ctx, key, "")
		require.NoError(t, err)
		in(t, mounts, func(dir string) {
			err := os.WriteFile(filepath.Join(dir, "much"), make([]byte, 16<<20), 0o644)
			if limited {
				assert.ErrorIs(t, err, syscall.EDQUOT, key)
			} else {
				assert.NoError(t, err, key)
			}
		})
	}

	ok := func(method, body string) string {
		answer, status := docker(t, c, method, body)
		require.Equal(t, http.StatusOK, status, "%s: %s", method, answer)
		return answer
	}
	ok("GraphDriver.Init", `{"Home":"`+filepath.Join(filepath.Dir(c.Root), "docker")+`"}`)
	assert.Contains(t, ok("GraphDriver.Status", `{}`), `["Build Size","8MiB"]`)
	ok("GraphDriver.Create", `{"ID":"image"}`)
	assert.Contains(t, ok("GraphDriver.GetMetadata", `{"ID":"image"}`), `"Limit":"8388608"`)
	ok("GraphDriver.Create", `{"ID":"large","StorageOpt":{"size":"64M"}}`)
	assert.Contains(t, ok("GraphDriver.GetMetadata", `{"ID":"large"}`), `"Limit":"67108864"`)
	ok("GraphDriver.CreateReadWrite", `{"ID":"container","Parent":"image"}`)
	assert.NotContains(t, ok("GraphDriver.GetMetadata", `{"ID":"container"}`), `"Limit":`)

	ok("GraphDriver.Create", `{"ID":"layer"}`)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "much", Mode: 0o644, Size: 16 << 20}))
	_, err := w.Write(bytes.Repeat([]byte("x"), 16<<20))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	answer, _ := docker(t, c, "GraphDriver.ApplyDiff?id=layer&parent=", layer.String())
	assert.Contains(t, answer, "build_limit is 8M")

	page := httpDo(t, filepath.Join(c.State, "metrics.sock"), http.MethodGet, "/metrics")
	for _, line := range []string{
		`cowshed_configured_limit_bytes{key="build_limit"} 8.388608e+06`,
		`cowshed_snapshots_prepared_total{use="build"} 1`,
		`cowshed_limit_hits_total{limit="quota",service="docker"} 1`,
	} {
		assert.Contains(t, page, "\n"+line)
	}
	require.NoError(t, r.stop())
}

func TestDockerHome(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	c.DockerPlugin = "cowshed-test"
	c.DockerHome = filepath.Join(c.Root, "docker")
	start(t, c)
	answer, status := docker(t, c, "GraphDriver.Init", `{"Home":"/nonexistent/cowshed-test"}`)
	require.Equal(t, http.StatusOK, status, "%s", answer)
	assert.DirExists(t, filepath.Join(c.DockerHome, "btrfs"))
	assert.NoDirExists(t, "/nonexistent")
	answer, status = docker(t, c, "GraphDriver.Init", `{"Home":"/nonexistent/cowshed-test","Opts":["overlay2.size=1G"]}`)
	assert.NotEqual(t, http.StatusOK, status, "%s", answer)
	assert.Contains(t, answer, "overlay2.size")
}

var _ plugin.Driver = measuredDocker{}

func TestConnectContainerdLater(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	r := start(t, c)
	ctx := namespaces.WithNamespace(t.Context(), "default")
	conn := r.dial()
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
	differ, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(snapshotter.DiffService)
	require.True(t, ok)
	mounts, err := s.Prepare(ctx, "one", "")
	require.NoError(t, err)
	_, err = differ.Compare(ctx, nil, mounts)
	require.ErrorIs(t, err, errdefs.ErrUnavailable, "containerd is not there yet")
	startContent(t, c.ContainerdAddress)
	require.Eventually(t, func() bool {
		_, err = differ.Compare(ctx, nil, mounts)
		return !errors.Is(err, errdefs.ErrUnavailable)
	}, testfs.Patience, 20*time.Millisecond)
	require.NoError(t, err)
}
