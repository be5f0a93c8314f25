package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	nriapi "github.com/containerd/nri/pkg/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/enginelimits/nri"
	"github.com/cowshed/cowshed/internal/enginelimits/nri/nritest"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/testfs"
)

// withAPI is a configuration with the API.
func withAPI(t testing.TB, opts ...testfs.BtrfsOption) Config {
	t.Helper()
	c := testConfig(t, opts...)
	c.API = filepath.Join(c.State, "api.sock")
	return c
}

// call sends a request to the API, and reads its answer into a value.
func (r *running) call(method, path, body string, into any) int {
	r.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.API)
	}}, Timeout: testfs.Patience}
	request, err := http.NewRequestWithContext(r.t.Context(), method, "http://cowshed"+path, strings.NewReader(body))
	require.NoError(r.t, err)
	answer, err := client.Do(request)
	require.NoError(r.t, err)
	defer answer.Body.Close()
	if into != nil {
		require.NoError(r.t, json.NewDecoder(answer.Body).Decode(into))
	}
	return answer.StatusCode
}

// TestAPI: the daemon answers the API about its own volumes, and about the command's store once there is one.
func TestAPI(t *testing.T) {
	testfs.CheckLeaks(t)
	c := withAPI(t)
	c.APIGroup = "54321"
	r := start(t, c)
	info, err := os.Stat(c.API)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	stat, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	assert.Equal(t, uint32(54321), stat.Gid)

	var fault api.Error
	assert.Equal(t, http.StatusNotFound, r.call("GET", "/v1/layers", "", &fault))
	assert.Contains(t, fault.Message, "cowshed init")
	require.NoError(t, os.Mkdir(filepath.Join(c.Root, "btrfs"), 0o700))
	var layer api.Layer
	assert.Equal(t, http.StatusCreated, r.call("POST", "/v1/layers", `{"name":"web"}`, &layer))
	assert.Equal(t, "web", layer.Name)

	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	_, err = s.Prepare(ctx, "k8s.io/1/running", "")
	require.NoError(t, err)
	var forks api.Forks
	assert.Equal(t, http.StatusCreated, r.call("POST", "/v1/layers/containerd:k8s.io%2Frunning/forks", `{"name":"try"}`, &forks))
	assert.Equal(t, "fork:try", forks.Forks[0].Name)
	var layers api.Layers
	assert.Equal(t, http.StatusOK, r.call("GET", "/v1/layers?forks=true", "", &layers))
	require.Len(t, layers.Layers, 1)
	assert.Equal(t, http.StatusNotFound, r.call("GET", "/v1/layers/containerd:k8s.io%2Fgone", "", nil))
	for _, to := range []string{"x:1", "oci:" + filepath.Join(t.TempDir(), "layout") + ":x"} {
		for _, of := range []string{"containerd:k8s.io%2Frunning", "fork:try"} { // there is no containerd that knows their image
			assert.Equal(t, http.StatusServiceUnavailable, r.call("POST", "/v1/layers/"+of+"/promote", fmt.Sprintf(`{"to":%q}`, to), &fault), of)
		}
	}
	assert.NoDirExists(t, filepath.Join(c.Root, "containerd", "images", "records"), "no image is made among the daemon's volumes")
	assert.Equal(t, http.StatusNoContent, r.call("DELETE", "/v1/layers/fork:try", "", nil))
	require.NoError(t, s.Remove(ctx, "k8s.io/1/running"))
	assert.Contains(t, httpDo(t, filepath.Join(c.State, "metrics.sock"), http.MethodGet, "/metrics"),
		`cowshed_api_refusals_total{gate="requests",kind="too_many_requests"} 0`)
	require.NoError(t, r.stop())
	assert.NoFileExists(t, c.API)
}

// TestAPIContainerLimit: the API limits a container as the command does, and by no more than max_limit.
func TestAPIContainerLimit(t *testing.T) {
	testfs.CheckLeaks(t)
	c := withAPI(t)
	c.MaxLimit, c.NRI, c.NRISocket = "64M", true, filepath.Join(c.State, "nri.sock")
	engine, err := net.Listen("unix", c.NRISocket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, engine.Close()) })
	r := start(t, c)
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	_, err = s.Prepare(ctx, "k8s.io/1/extract-1 sha256:a", "")
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "k8s.io/2/image", "k8s.io/1/extract-1 sha256:a"))
	_, err = s.Prepare(ctx, "k8s.io/3/running", "k8s.io/2/image")
	require.NoError(t, err)
	runtime := nritest.Accept(t, engine)
	_, err = runtime.Plugin.Configure(ctx, &nriapi.ConfigureRequest{})
	require.NoError(t, err)
	_, err = runtime.Plugin.Synchronize(ctx, &nriapi.SynchronizeRequest{
		Pods:       []*nriapi.PodSandbox{{Id: "p", Annotations: map[string]string{nri.SizeAnnotation: "much"}}},
		Containers: []*nriapi.Container{{Id: "running", PodSandboxId: "p"}},
	})
	require.NoError(t, err)
	withoutLimit := func() int {
		report, err := enginelimits.ReadReport(c.State)
		require.NoError(t, err)
		return len(report.Refused)
	}
	require.Eventually(t, func() bool { return withoutLimit() == 1 }, testfs.Patience, time.Millisecond)
	const path = "/v1/layers/containerd:k8s.io%2Frunning"
	limit := func() uint64 {
		var usage api.Usage
		require.Equal(t, http.StatusOK, r.call("GET", path+"/usage", "", &usage))
		return usage.Limit
	}
	for _, size := range []string{"32M", "64M", "16M"} {
		assert.Equal(t, http.StatusNoContent, r.call("PUT", path+"/limit", fmt.Sprintf(`{"size":%q}`, size), nil), size)
	}
	assert.Equal(t, uint64(16<<20), limit())
	assert.Zero(t, withoutLimit(), "it has a limit now")
	info, err := s.Stat(ctx, "k8s.io/3/running")
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(16<<20), info.Labels[snapshots.LabelSnapshotMaxSize])

	for _, refused := range []struct {
		layer, size string
		status      int
		message     string
	}{
		{"running", "65M", http.StatusBadRequest, `size "65MiB" is more than the 64MiB that the configuration`},
		{"running", "none", http.StatusBadRequest, "can be raised, and not be removed"},
		{"image", "1M", http.StatusConflict, "is not the snapshot of a container"},
		{"gone", "1M", http.StatusNotFound, "there is no such snapshot"},
	} {
		var fault api.Error
		assert.Equal(t, refused.status, r.call("PUT", "/v1/layers/containerd:k8s.io%2F"+refused.layer+"/limit", fmt.Sprintf(`{"size":%q}`, refused.size), &fault))
		assert.Contains(t, fault.Message, refused.message)
	}
	assert.Equal(t, uint64(16<<20), limit())
	for _, key := range []string{"3/running", "2/image"} {
		require.NoError(t, s.Remove(ctx, "k8s.io/"+key))
	}
	require.NoError(t, r.stop())
}

// TestStoreOfAnother: while another process has the home of the command's store for itself, a request waits for a time, or until its
// client goes away.
func TestStoreOfAnother(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	home := filepath.Join(c.Root, "btrfs")
	require.NoError(t, os.MkdirAll(home, 0o700))
	lock, err := os.Create(homedir.LockFile(home))
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, flock.Exclusive(t.Context(), lock))
	stores := &apiStores{daemon: &daemon{config: c, log: slog.New(slog.DiscardHandler)}, patience: 50 * time.Millisecond}
	testfs.Within(t, func() {
		_, _, err := stores.Open(t.Context())
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, c.Root)
		gone, leave := context.WithCancel(t.Context())
		leave()
		_, _, err = stores.Open(gone)
		require.ErrorIs(t, err, context.Canceled)
	})

	stores.patience = testfs.Patience
	first, leave := context.WithCancel(t.Context())
	left, opened := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := stores.Open(first)
		left <- err
	}()
	go func() {
		store, release, err := stores.Open(t.Context())
		if err == nil {
			assert.NotNil(t, store)
			release()
		}
		opened <- err
	}()
	require.Eventually(t, func() bool { return stores.waiting() == 2 }, testfs.Patience, time.Millisecond)
	leave()
	require.ErrorIs(t, testfs.Receive(t, left), context.Canceled)
	require.NoError(t, flock.Unlock(lock))
	require.NoError(t, testfs.Receive(t, opened), "the first client opened it for the other too")
	assert.Zero(t, stores.waiting())
}

// waiting counts the requests that have the command's store open, or wait for it.
func (s *apiStores) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store == nil {
		return 0
	}
	return s.store.users
}

// TestAPIFlood: while clients of the API send more requests than it takes, containerd's requests are served.
func TestAPIFlood(t *testing.T) {
	testfs.CheckLeaks(t)
	c := withAPI(t)
	c.LogLevel = "error"
	r := start(t, c)
	require.NoError(t, os.Mkdir(filepath.Join(c.Root, "btrfs"), 0o700))
	require.Equal(t, http.StatusCreated, r.call("POST", "/v1/layers", `{"name":"web"}`, nil))
	done := make(chan struct{})
	var clients sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(done)
		clients.Wait()
	})
	defer end()
	for range 100 {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				r.flood([]string{"/v1/layers", "/v1/layers/web/export", "/v1/layers/web/changes?whole=true", "/v1/layers?forks=true"}[i%4])
			}
		})
	}
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	for i := range 20 {
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "k8s.io"), testfs.Patience)
		key := fmt.Sprintf("k8s.io/%d/container", i)
		_, err := s.Prepare(ctx, key, "")
		require.NoError(t, err)
		require.NoError(t, s.Remove(ctx, key))
		cancel()
	}
	end()
	assert.Equal(t, http.StatusOK, r.call("GET", "/v1/info", "", nil))
}

// flood sends a request whose answer does not matter.
func (r *running) flood(path string) {
	conn, err := (&net.Dialer{}).DialContext(r.t.Context(), "unix", r.API)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testfs.Patience))
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n"); err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}

// TestAPINames: groups, users and tokens that are not there keep the daemon from starting.
func TestAPINames(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, c *Config){
		"group": func(_ *testing.T, c *Config) { c.APIGroup = "no-such-group" },
		"user": func(_ *testing.T, c *Config) {
			c.APINamespaces = []APINamespace{{Name: "ci", Users: []string{"no-such-user"}}}
		},
		"public token": func(t *testing.T, c *Config) {
			c.APITokenFile = filepath.Join(c.State, "token")
			require.NoError(t, os.WriteFile(c.APITokenFile, []byte(strings.Repeat("x", minToken)), 0o644))
		},
		"short token": func(t *testing.T, c *Config) {
			c.APITokenFile = filepath.Join(c.State, "token")
			require.NoError(t, os.WriteFile(c.APITokenFile, []byte("short"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			c := withAPI(t)
			change(t, &c)
			require.ErrorIs(t, Run(t.Context(), c, Options{}), errdefs.ErrInvalidArgument)
		})
	}
}

// TestToken: the token is read from a file of root that nobody else can read or change, and from nothing else.
func TestToken(t *testing.T) {
	testfs.Root(t)
	token := strings.Repeat("x", maxToken)
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode, uid int) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		require.NoError(t, os.Chown(path, uid, 0))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, path := range []string{
		file("of another", token, 0o600, 1000), file("of a group", token, 0o640, 0), file("long", token+"x", 0o600, 0), file("short", "x", 0o600, 0),
		pipe, dir, "/dev/zero",
	} {
		_, err := readToken(path)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, path)
	}
	read, err := readToken(file("good", token[1:]+"\n", 0o400, 0))
	require.NoError(t, err)
	assert.Equal(t, token[1:], read)
}
