package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/nri/pkg/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/enginelimits/nri/nritest"
	"github.com/cowshed/cowshed/internal/testfs"
)

// recordEngine is the API of an engine whose containers are records.
type recordEngine struct {
	events chan string
	asked  atomic.Int64
}

func (e *recordEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.asked.Add(1)
	id, ok := strings.CutPrefix(r.URL.Path, "/containers/")
	switch {
	case r.URL.Path == "/events":
		flush := http.NewResponseController(w)
		_ = flush.Flush()
		for {
			select {
			case id := <-e.events:
				fmt.Fprintf(w, `{"Action": "create", "Actor": {"ID": "%s"}}`, id)
				_ = flush.Flush()
			case <-r.Context().Done():
				return
			}
		}
	case r.URL.Path == "/containers/json":
		fmt.Fprint(w, `[]`)
	case ok:
		fmt.Fprintf(w, `{"Id": "%s", "Name": "/c", "Created": "%s", "HostConfig": {"StorageOpt": {"size": "1M"}}}`,
			strings.TrimSuffix(id, "/json"), time.Now().Format(time.RFC3339Nano))
	}
}

// barsHost is a daemon whose engines are this test, and their snapshots.
type barsHost struct {
	t         testing.TB
	engine    *recordEngine
	nri       api.PluginService // of pods
	dockerNRI api.PluginService
	snapshots snapshots.Snapshotter
	mounted   string // where the filesystem is
}

func newBarsHost(t testing.TB) *barsHost {
	t.Helper()
	c := testConfig(t)
	h := &barsHost{t: t, engine: &recordEngine{events: make(chan string)}, mounted: filepath.Dir(c.Root)}
	listen := func(name string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(c.State, name))
		require.NoError(t, err)
		return l
	}
	docker, nri, dockerNRI := listen("docker"), listen("nri"), listen("docker-nri")
	t.Cleanup(func() { require.NoError(t, errors.Join(nri.Close(), dockerNRI.Close())) })
	server := &http.Server{Handler: h.engine, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(docker) }()
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	c.DockerAPI, c.NRI, c.NRISocket, c.DockerNRI = "unix://"+docker.Addr().String(), true, nri.Addr().String(), dockerNRI.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Run(ctx, c, Options{Logger: slog.New(slog.DiscardHandler), Ready: func() { close(ready) }})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, testfs.Result(ended))
	})
	testfs.Begun(t, ready, ended)
	connect := func(l net.Listener) api.PluginService {
		r := nritest.Accept(t, l)
		_, err := r.Plugin.Configure(t.Context(), &api.ConfigureRequest{})
		require.NoError(t, err)
		_, err = r.Plugin.Synchronize(t.Context(), &api.SynchronizeRequest{})
		require.NoError(t, err)
		return r.Plugin
	}
	h.nri, h.dockerNRI = connect(nri), connect(dockerNRI)
	conn, err := grpc.NewClient("unix://"+c.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	h.snapshots = snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
	_, err = h.snapshots.Prepare(t.Context(), "moby/1/base-active", "")
	require.NoError(t, err)
	require.NoError(t, h.snapshots.Commit(t.Context(), "moby/2/base", "moby/1/base-active"))
	return h
}

// id is that of container n, as engines make them.
func (h *barsHost) id(n int) string { return fmt.Sprintf("%064d", n) }

// delays are the times from the creation of a container until the kernel has its limit, and until the limit is durable.
type delays struct{ inForce, durable time.Duration }

// create creates a container by announce, which returns when its engine has been told, or when its context ends.
func (h *barsHost) create(key string, announce func(context.Context)) (d delays) {
	h.t.Helper()
	mounts, err := h.snapshots.Prepare(h.t.Context(), key, "moby/2/base")
	require.NoError(h.t, err)
	group := h.qgroup(mounts)
	begun := time.Now()
	ctx, cancel := context.WithTimeout(h.t.Context(), testfs.Patience)
	told := make(chan struct{})
	defer func() {
		cancel()
		<-told
	}()
	go func() {
		defer close(told)
		announce(ctx)
	}()
	for d.durable == 0 {
		require.NoError(h.t, ctx.Err())
		if d.inForce == 0 {
			if hasLimit(group) {
				d.inForce = time.Since(begun)
			}
		} else {
			info, err := h.snapshots.Stat(h.t.Context(), key)
			require.NoError(h.t, err)
			if info.Labels[snapshots.LabelSnapshotMaxSize] != "" {
				d.durable = time.Since(begun)
			}
		}
		time.Sleep(100 * time.Microsecond)
	}
	testfs.Receive(h.t, told)
	return d
}

// hasLimit reports whether the kernel shows a limit of 1 MiB: in one file for simple quotas, in the other for classic ones.
func hasLimit(group string) bool {
	for _, name := range []string{"max_referenced", "max_exclusive"} {
		if text, err := os.ReadFile(filepath.Join(group, name)); err == nil && strings.TrimSpace(string(text)) == fmt.Sprint(1<<20) {
			return true
		}
	}
	return false
}

// qgroup is the directory in which the kernel shows the quota of a snapshot.
func (h *barsHost) qgroup(mounts []mount.Mount) string {
	h.t.Helper()
	require.Len(h.t, mounts, 1)
	filesystems, err := filepath.Glob("/sys/fs/btrfs/*/devices/" + filepath.Base(mounts[0].Source))
	require.NoError(h.t, err)
	require.Len(h.t, filesystems, 1)
	path, ok := strings.CutPrefix(mounts[0].Options[0], "subvol=")
	require.True(h.t, ok, "%v", mounts)
	dir, err := os.Open(filepath.Join(h.mounted, path))
	require.NoError(h.t, err)
	defer dir.Close()
	info, err := btrfsctl.Info(int(dir.Fd()))
	require.NoError(h.t, err)
	return filepath.Join(filesystems[0], "../../qgroups", fmt.Sprintf("0_%d", info.ID))
}

// docker creates container n of Docker.
func (h *barsHost) docker(n int) delays {
	h.t.Helper()
	return h.create(fmt.Sprintf("moby/%d/%s", n+3, h.id(n)), func(ctx context.Context) {
		select {
		case h.engine.events <- h.id(n):
		case <-ctx.Done():
		}
	})
}

// labelled creates container n of Docker with a label, which NRI tells before its snapshot is made.
func (h *barsHost) labelled(n int) (key string) {
	h.t.Helper()
	key = fmt.Sprintf("moby/%d/labelled-%s", n+3, h.id(n))
	_, err := h.dockerNRI.CreateContainer(h.t.Context(), &api.CreateContainerRequest{
		Container: &api.Container{Id: "labelled-" + h.id(n), Labels: map[string]string{dockerapi.SizeLabel: "1M"}},
	})
	require.NoError(h.t, err)
	_, err = h.snapshots.Prepare(h.t.Context(), key, "moby/2/base")
	require.NoError(h.t, err)
	return key
}

// kubernetes creates container n of a pod.
func (h *barsHost) kubernetes(n int) delays {
	h.t.Helper()
	return h.create(fmt.Sprintf("k8s.io/%d/%s", n+3, h.id(n)), func(ctx context.Context) {
		_, err := h.nri.CreateContainer(ctx, &api.CreateContainerRequest{
			Pod: &api.PodSandbox{Annotations: map[string]string{"cowshed.dev/size": "1M"}}, Container: &api.Container{Id: h.id(n)},
		})
		assert.NoError(h.t, err)
	})
}

// requireInForce writes to a container, and expects the limit of 1 MiB.
func (h *barsHost) requireInForce(key string) {
	h.t.Helper()
	mounts, err := h.snapshots.Mounts(h.t.Context(), key)
	require.NoError(h.t, err)
	require.NoError(h.t, mount.WithTempMount(h.t.Context(), mounts, func(root string) error {
		f, err := os.Create(filepath.Join(root, "big"))
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 2<<20))
		err = errors.Join(err, f.Sync())
		assert.ErrorIs(h.t, err, syscall.EDQUOT)
		return f.Close()
	}))
}

// heap is the memory in use, without garbage.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestEngineMemory: a container that an engine limits takes little of the daemon's memory. A daemon that has nothing to do asks
// Docker nothing. TestIdle of the kubelet's source is the same for the kubelet; NRI asks the daemon.
func TestEngineMemory(t *testing.T) {
	const (
		warm    = 20       // containers, after which most connections and buffers are there
		buffers = 64 << 10 // of connections, which may still grow
	)
	containers, idle := 100, 2*time.Second
	if testfs.Long() {
		containers, idle = manyContainers, 130*time.Second
	}
	h := newBarsHost(t)
	h.kubernetes(0)
	for n := range warm {
		h.docker(n)
		h.labelled(n)
	}
	for engine, create := range map[string]func(n int){"docker_api": func(n int) { h.docker(n) }, "docker_nri": func(n int) { h.labelled(n) }} {
		before := heap()
		for n := range containers {
			create(warm + n)
		}
		growth := max(0, int64(heap()-before))
		t.Logf("%s, %d containers: %d bytes of the heap for each", engine, containers, growth/int64(containers))
		assert.LessOrEqual(t, growth, int64(containers)*1024+buffers, engine)
	}

	asked := h.engine.asked.Load()
	time.Sleep(idle)
	assert.Zero(t, h.engine.asked.Load()-asked, "requests in %s without anything to do", idle)
	h.requireInForce(fmt.Sprintf("moby/%d/%s", containers+3, h.id(containers))) // not the last
	h.requireInForce(fmt.Sprintf("k8s.io/%d/%s", 3, h.id(0)))
	h.requireInForce(h.labelled(containers + warm))
}

// BenchmarkEngineLimits measures the times from the creation of a container to its limit, beside many others.
func BenchmarkEngineLimits(b *testing.B) {
	h := newBarsHost(b)
	n := 0
	for ; n < manyContainers; n++ {
		h.docker(n)
	}
	for _, engine := range []struct {
		name   string
		create func(n int) delays
	}{{"docker_api", h.docker}, {"nri", h.kubernetes}} {
		b.Run(engine.name, func(b *testing.B) {
			var inForce, durable []time.Duration
			for b.Loop() {
				d := engine.create(n)
				inForce, durable = append(inForce, d.inForce), append(durable, d.durable)
				n++
			}
			for name, times := range map[string][]time.Duration{"in-force": inForce, "durable": durable} {
				slices.Sort(times)
				b.ReportMetric(milliseconds(times[len(times)/2]), name+"-p50-ms")
				b.ReportMetric(milliseconds(times[len(times)*99/100]), name+"-p99-ms")
			}
		})
	}
}

// manyContainers are on the host while others are created.
const manyContainers = 1000

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }
