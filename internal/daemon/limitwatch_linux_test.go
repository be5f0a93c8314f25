package daemon

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/containername"
	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/limited"
	"github.com/cowshed/cowshed/internal/schedule"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// podContainers serves one container, of a pod.
type podContainers struct {
	containersapi.UnimplementedContainersServer
	id string
}

func (c podContainers) Get(_ context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	if r.GetID() != c.id {
		return nil, status.Error(codes.NotFound, "none")
	}
	return &containersapi.GetContainerResponse{Container: &containersapi.Container{ID: c.id, Labels: map[string]string{
		"io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.name": "web-0", "io.kubernetes.container.name": "app",
	}}}, nil
}

// TestLimitWatch: a container near its limit is reported once at each level, also by daemons that follow each other, with the names
// of its pod. Layers that are unpacked are not.
func TestLimitWatch(t *testing.T) {
	testfs.CheckLeaks(t)
	id := strings.Repeat("0123456789abcdef", 4)
	c := testConfig(t, testfs.WithSimpleQuota())
	c.DefaultLimit, c.BuildLimit, c.ContainerMetrics = "16M", "16M", 10
	out := filepath.Join(c.State, "alerts")
	command := filepath.Join(c.State, "command")
	require.NoError(t, os.WriteFile(command, []byte("#!/bin/sh\necho $COWSHED_PERCENT $COWSHED_POD_NAMESPACE/$COWSHED_POD/$COWSHED_CONTAINER >>\"$1\"\n"), 0o700))
	c.AlertCommand = []string{command, out}
	l, err := net.Listen("unix", c.ContainerdAddress)
	require.NoError(t, err)
	server := grpc.NewServer()
	containersapi.RegisterContainersServer(server, podContainers{id: id})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	fill := func(s snapshots.Snapshotter, key, name string, bytes int) {
		mounts, err := s.Mounts(t.Context(), key)
		require.NoError(t, err)
		in(t, mounts, func(dir string) {
			write(t, dir, name, strings.Repeat("x", bytes))
			f, err := os.Open(dir)
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, unix.Syncfs(int(f.Fd())))
		})
	}
	silent := c // so that it does not look after the containers are full
	silent.AlertPercents, silent.ContainerMetrics = []int{}, 0
	r := start(t, silent)
	snapshotter := func() snapshots.Snapshotter {
		return snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	}
	s := snapshotter()
	for _, key := range []string{"k8s.io/7/" + id, "k8s.io/8/empty", "k8s.io/9/extract-1-Ab_- sha256:" + id} {
		_, err := s.Prepare(t.Context(), key, "")
		require.NoError(t, err)
	}
	fill(s, "k8s.io/7/"+id, "much", 14<<20)
	fill(s, "k8s.io/9/extract-1-Ab_- sha256:"+id, "layer", 14<<20)
	require.NoError(t, r.stop())

	metrics := func() (lines []string) {
		for line := range strings.Lines(httpDo(t, filepath.Join(c.State, "metrics.sock"), http.MethodGet, "/metrics")) {
			if strings.HasPrefix(line, "cowshed_container_") || strings.HasPrefix(line, "cowshed_limit_alerts") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return lines
	}
	r = start(t, c)
	sent := `cowshed_limit_alerts_sent_total{outcome="ok",way="command"} 1`
	requireSent := func(want string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Contains(strings.Join(metrics(), "\n"), sent) }, testfs.Patience, 20*time.Millisecond)
		text, err := os.ReadFile(out)
		require.NoError(t, err)
		assert.Equal(t, want, string(text))
	}
	requireSent("80 shop/web-0/app\n")
	lines := metrics()
	assert.Contains(t, lines, `cowshed_limit_alerts_total{percent="80"} 1`)
	assert.Contains(t, lines, `cowshed_container_limit_bytes{container="app",namespace="shop",pod="web-0"} 1.6777216e+07`)
	assert.Contains(t, lines, `cowshed_container_limit_bytes{container="empty",namespace="k8s.io",pod=""} 1.6777216e+07`)
	assert.Contains(t, strings.Join(lines, "\n"), `cowshed_container_held_bytes{container="app",namespace="shop",pod="web-0"} 1.46`)
	assert.Len(t, lines, 4+2+3, "%v", lines)
	require.NoError(t, r.stop())
	assert.Contains(t, r.log.String(), "a container is near its limit")

	r = start(t, c)
	require.Eventually(t, func() bool { return strings.Contains(strings.Join(metrics(), "\n"), `pod="web-0"`) }, testfs.Patience, 20*time.Millisecond)
	assert.Contains(t, metrics(), `cowshed_limit_alerts_total{percent="80"} 0`)
	require.NoError(t, r.stop())
	assert.NotContains(t, r.log.String(), "a container is near its limit")

	r = start(t, silent)
	fill(snapshotter(), "k8s.io/7/"+id, "more", 14<<20/10)
	require.NoError(t, r.stop())
	r = start(t, c)
	requireSent("80 shop/web-0/app\n95 shop/web-0/app\n")
	assert.Contains(t, metrics(), `cowshed_limit_alerts_total{percent="95"} 1`)
	require.NoError(t, r.stop())
}

// digitless names containers by their ids.
type digitless struct{}

func (digitless) Name(_ context.Context, id containername.ID) (containername.Name, error) {
	return containername.Name{Container: strings.TrimRight(id.ID, "0123456789")}, nil
}

func watchedAt(id string, held uint64, at int64) watched {
	return watched{
		Volume:  limited.Volume{Name: "v-" + id, Held: held, Limit: quota.Limit{Bytes: 100}, Counted: true, Created: time.Unix(at, 0)},
		service: snapshotsService, id: containername.ID{Namespace: "test", ID: id},
	}
}

// TestContainerMetrics: there are no more series than the configuration says, of the fullest containers. Of containers with the
// same name the newest has the series, also if an older one is fuller. A label is valid whatever the key of a snapshot.
func TestContainerMetrics(t *testing.T) {
	all := []watched{watchedAt("web1", 50, 1), watchedAt("web2", 30, 2), watchedAt("db", 20, 3), watchedAt("a\xff", 40, 4), watchedAt("low", 10, 5)}
	for most, want := range map[int][]string{
		0: nil,
		1: {"a� 40"},
		3: {"a� 40", "web 30", "db 20"},
		9: {"a� 40", "web 30", "db 20", "low 10"},
	} {
		var m containerMetrics
		n := containername.NewLook(t.Context(), digitless{}, nil)
		m.set(all, most, n)
		var got []string
		for _, s := range *m.last.Load() {
			assert.Equal(t, "test", s.labels[0])
			got = append(got, s.labels[2]+" "+quota.FormatSize(s.Held)[:2])
		}
		assert.Equal(t, want, got, most)
		assert.Equal(t, most == 0, len(n.Known()) == 0, "nobody is asked for names without metrics")
	}
}

// fullBackend has one container that is at its limit.
type fullBackend struct{ cowcommon.Backend }

const fullVolume = "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ.k8s.io_2f1_2ffull"

func (fullBackend) Volumes(context.Context) iter.Seq2[cowcommon.Volume, error] {
	return func(yield func(cowcommon.Volume, error) bool) {
		yield(cowcommon.Volume{Name: fullVolume, Limit: quota.Limit{Bytes: 100}}, nil)
	}
}

func (fullBackend) Usage(context.Context, string) (quota.Usage, error) {
	return quota.Usage{Bytes: 100}, nil
}

func (fullBackend) SetLimit(context.Context, string, quota.Limit) error {
	return errors.New("not called")
}

// slowNames answers after a while, and does not end before.
type slowNames time.Duration

func (n slowNames) Name(ctx context.Context, id containername.ID) (containername.Name, error) {
	time.Sleep(time.Duration(n))
	return containername.Name{Container: "of " + id.ID}, ctx.Err()
}

// TestWatchPause: the daemon looks once a minute, and less often where measuring takes long, but every ten minutes. It does not
// matter how long names take.
func TestWatchPause(t *testing.T) {
	for took, want := range map[time.Duration]int{0: 60, 3 * time.Second: 12, time.Minute: 6} {
		synctest.Test(t, func(t *testing.T) {
			c := Default()
			c.State = t.TempDir()
			looks := 0
			w := newLimitWatch(c, []source{{service: snapshotsService, use: func(do func(context.Context, cowcommon.Backend)) {
				looks++
				time.Sleep(took)
				do(t.Context(), fullBackend{})
			}}}, slowNames(5*time.Second), slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour-time.Second)
			defer cancel()
			w.run(ctx)
			assert.Equal(t, want, looks)
		})
	}
}

// TestNamesAfterMeasuring: however long measuring takes, there is time for names.
func TestNamesAfterMeasuring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Default()
		c.State, c.ContainerMetrics = t.TempDir(), 1
		w := newLimitWatch(c, []source{{service: snapshotsService, use: func(do func(context.Context, cowcommon.Backend)) {
			time.Sleep(watchTimeout)
			do(t.Context(), fullBackend{})
		}}}, slowNames(time.Second), slog.New(slog.DiscardHandler))
		w.open()
		assert.Equal(t, watchTimeout, w.look(t.Context()))
		assert.Equal(t, [3]string{"k8s.io", "", "of full"}, (*w.containers.last.Load())[0].labels)
	})
}

// TestLastReport: a report that is made while the daemon stops has an outcome.
func TestLastReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Default()
		c.State, c.AlertCommand = t.TempDir(), []string{"/bin/true"}
		w := newLimitWatch(c, []source{{service: snapshotsService, use: func(do func(context.Context, cowcommon.Backend)) {
			do(t.Context(), fullBackend{})
		}}}, slowNames(5*time.Second), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w.run(ctx)
		registry := prometheus.NewRegistry()
		registry.MustRegister(w.sender)
		families, err := registry.Gather()
		require.NoError(t, err)
		outcomes := 0.0
		for _, series := range families[0].GetMetric() {
			outcomes += series.GetCounter().GetValue()
		}
		assert.InDelta(t, 1, outcomes, 0)
	})
}

// TestWatchThatDoesNotEnd: a daemon whose filesystem does not answer stops.
func TestWatchThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Default()
		c.State = t.TempDir()
		var log bytes.Buffer
		release := make(chan struct{})
		w := newLimitWatch(c, []source{{service: snapshotsService, use: func(func(context.Context, cowcommon.Backend)) {
			<-release
		}}}, slowNames(0), slog.New(slog.NewTextHandler(&log, nil)))
		schedules := schedule.New(func() ([]schedule.Home, error) { return nil, nil }, w.log)
		d := &daemon{
			config: c, log: w.log, limits: w, schedules: schedules, retryCleanup: func(context.Context) {},
			server: grpc.NewServer(), health: health.NewServer(), engines: &enginelimits.Group{},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		require.NoError(t, d.serve(ctx))
		assert.Equal(t, time.Minute+c.StopTimeout.Duration, time.Since(start))
		assert.Contains(t, log.String(), "which nobody waits for")
		close(release)
	})
}

// TestNothingToWatch: without alerts and metrics nobody looks.
func TestNothingToWatch(t *testing.T) {
	c := Default()
	c.AlertPercents = []int{}
	var log bytes.Buffer
	newLimitWatch(c, []source{{use: func(func(context.Context, cowcommon.Backend)) { t.Error("it looks") }}}, nil,
		slog.New(slog.NewTextHandler(&log, nil))).run(t.Context())
	assert.Empty(t, log.String())
}
