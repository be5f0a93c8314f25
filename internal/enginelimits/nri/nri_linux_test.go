package nri

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/enginelimits/kubelet"
	"github.com/cowshed/cowshed/internal/enginelimits/kubelet/kubelettest"
	"github.com/cowshed/cowshed/internal/enginelimits/nri/nritest"
	"github.com/cowshed/cowshed/internal/testfs"
)

// limits are the limits that have been set, by id.
type limits struct {
	sync.Map
	slow chan error // ends SetLimit of the ids that begin with slow
}

func (l *limits) Key(_ context.Context, namespace, own string) (string, error) {
	if namespace != "k8s.io" {
		return "", errdefs.ErrNotFound
	}
	return own, nil
}

// Stat does not answer about ids that begin with stuck.
func (l *limits) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if strings.HasPrefix(key, "stuck") {
		<-ctx.Done()
	}
	return snapshots.Info{}, ctx.Err()
}

func (l *limits) SetLimit(ctx context.Context, key string, bytes uint64) error {
	if strings.HasPrefix(key, "slow") {
		select {
		case err := <-l.slow:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.Store(key, bytes)
	return nil
}

// listen makes a socket of NRI in a directory of its own.
func listen(t *testing.T) (dir, socket string, l net.Listener) {
	t.Helper()
	dir = t.TempDir()
	socket = filepath.Join(dir, "nri.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return dir, socket, l
}

// runGroup runs sources until the test ends. Their report is in dir.
func runGroup(t *testing.T, dir string, set *limits, sources ...enginelimits.Source) (context.Context, *enginelimits.Group) {
	t.Helper()
	group := enginelimits.NewGroup(sources, set, enginelimits.NewMetrics(), dir, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { group.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		testfs.Within(t, running.Wait)
	})
	return ctx, group
}

// TestConnection: containerd names containers in parts, creates a good and a bad container, and ends the connection. The source
// connects again.
func TestConnection(t *testing.T) {
	dir, socket, l := listen(t)
	var set limits
	ctx, _ := runGroup(t, dir, &set, &Source{Socket: socket, Max: 8 << 30})

	r := nritest.Accept(t, l)
	configured, err := r.Plugin.Configure(ctx, &api.ConfigureRequest{})
	require.NoError(t, err)
	var mask api.EventMask
	mask.Set(api.Event_CREATE_CONTAINER, api.Event_REMOVE_CONTAINER)
	assert.Equal(t, int32(mask), configured.GetEvents())

	_, err = enginelimits.ReadReport(dir)
	require.ErrorIs(t, err, fs.ErrNotExist, "containerd does not ask about new containers yet")
	pod := &api.PodSandbox{Id: "p", Name: "web", Namespace: "default", Annotations: map[string]string{SizeAnnotation: "2G", ContainerSizeAnnotation + "big": "4G", ContainerSizeAnnotation + "bad": "9G"}}
	container := func(id, name string) *api.Container { return &api.Container{Id: id, PodSandboxId: "p", Name: name} }
	answer, err := r.Plugin.Synchronize(ctx, &api.SynchronizeRequest{Pods: []*api.PodSandbox{pod}, Containers: []*api.Container{container("1", "one")}, More: true})
	require.NoError(t, err)
	assert.True(t, answer.GetMore())
	answer, err = r.Plugin.Synchronize(ctx, &api.SynchronizeRequest{Containers: []*api.Container{container("2", "big"), {Id: "3", PodSandboxId: "none", Name: "other"}}})
	require.NoError(t, err)
	assert.False(t, answer.GetMore())
	report, err := enginelimits.ReadReport(dir)
	require.NoError(t, err)
	assert.True(t, report.Engines[0].Connected)
	for id, want := range map[string]any{"1": uint64(2 << 30), "2": uint64(4 << 30), "3": nil} {
		limit, _ := set.Load(id)
		assert.Equal(t, want, limit, id)
	}

	_, err = r.Plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: container("4", "init")})
	require.NoError(t, err)
	limit, _ := set.Load("4")
	assert.Equal(t, uint64(2<<30), limit)
	_, err = r.Plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: container("5", "bad")})
	require.ErrorContains(t, err, `cowshed: annotation size.cowshed.dev/bad: invalid argument: size "9G" is more than the 8GiB`)
	_, err = r.Plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: &api.PodSandbox{}, Container: container("6", "free")})
	require.NoError(t, err)

	require.NoError(t, r.Mux.Close())
	nritest.Accept(t, l) // and it is not configured when everything ends
}

// TestKubelet: a container without an annotation gets the limit that the kubelet knows. While the kubelet is away the container
// is created without it, which the report says, and it gets the limit afterwards.
func TestKubelet(t *testing.T) {
	dir, socket, l := listen(t)
	var away, known atomic.Bool
	k := kubelettest.Start(t, func(w http.ResponseWriter, _ *http.Request) {
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		const container = `{"name": "%s", "resources": {"limits": {"ephemeral-storage": "%s"}}}`
		late := ""
		if known.Load() {
			late = fmt.Sprintf(`, {"metadata": {"uid": "w"}, "spec": {"containers": [`+container+`]}}`, "web", "5Gi")
		}
		fmt.Fprintf(w, `{"items": [{"metadata": {"uid": "u"}, "spec": {"containers": [`+container+`, `+container+`]}},
			{"metadata": {"uid": "v"}, "spec": {"containers": [`+container+`]}}%s]}`, "web", "1Gi", "annotated", "2Gi", "web", "3Gi", late)
	})
	source := &Source{Socket: socket, Kubelet: kubelet.NewSource(&kubelet.Client{Address: k.Address, CA: k.CA, Credential: k.Credential}, 0)}
	var set limits
	ctx, group := runGroup(t, dir, &set, source, source.Kubelet)
	r := nritest.Accept(t, l)
	configured, err := r.Plugin.Configure(ctx, &api.ConfigureRequest{})
	require.NoError(t, err)
	var mask api.EventMask
	mask.Set(api.Event_CREATE_CONTAINER, api.Event_REMOVE_CONTAINER, api.Event_RUN_POD_SANDBOX)
	assert.Equal(t, int32(mask), configured.GetEvents())
	limitOf := func(id string) any { limit, _ := set.Load(id); return limit }
	refused := func() []enginelimits.Refused {
		report, err := enginelimits.ReadReport(dir)
		require.NoError(t, err)
		return report.Refused
	}

	pod := &api.PodSandbox{Id: "p", Uid: "u", Annotations: map[string]string{ContainerSizeAnnotation + "annotated": "4G"}}
	_, err = r.Plugin.Synchronize(ctx, &api.SynchronizeRequest{Pods: []*api.PodSandbox{pod}, Containers: []*api.Container{
		{Id: "1", PodSandboxId: "p", Name: "web"}, {Id: "2", PodSandboxId: "p", Name: "annotated"}, {Id: "3", PodSandboxId: "p", Name: "free"},
	}})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return limitOf("1") != nil }, testfs.Patience, time.Millisecond)
	assert.Equal(t, []any{uint64(1 << 30), uint64(4 << 30), nil}, []any{limitOf("1"), limitOf("2"), limitOf("3")})
	_, err = r.Plugin.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod})
	require.NoError(t, err)
	create := func(id, uid, name string) {
		t.Helper()
		_, err := r.Plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: &api.PodSandbox{Uid: uid}, Container: &api.Container{Id: id, Name: name}})
		require.NoError(t, err)
	}
	create("4", "v", "web")
	assert.Equal(t, uint64(3<<30), limitOf("4"))
	create("5", "none", "web")
	assert.Nil(t, limitOf("5"))
	require.Eventually(t, func() bool { return len(refused()) == 0 }, testfs.Patience, 10*time.Millisecond, "the answer may be late")

	away.Store(true)
	create("6", "w", "web")
	require.Len(t, refused(), 1)
	assert.Contains(t, refused()[0].Error, "the kubelet does not say the limits of pods")
	known.Store(true)
	away.Store(false)
	require.Eventually(t, func() bool {
		group.Wake()
		return len(refused()) == 0
	}, testfs.Patience, time.Millisecond)
	assert.Equal(t, uint64(5<<30), limitOf("6"))
}

// TestSlowDisk: containerd has its answer in time while a limit takes long to set. The report has the container until the limit is
// set, and after that if it cannot be. Other containers do not wait.
func TestSlowDisk(t *testing.T) {
	k := kubelettest.Start(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"items": [{"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "web", "resources": {"limits": {"ephemeral-storage": "2G"}}}]}}]}`)
	})
	annotated := &api.PodSandbox{Annotations: map[string]string{SizeAnnotation: "2G", ContainerSizeAnnotation + "bad": "9G"}}
	for name, pod := range map[string]*api.PodSandbox{"annotation": annotated, "kubelet": {Uid: "u"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, socket, l := listen(t)
			set := &limits{slow: make(chan error)}
			source := &Source{Socket: socket, Max: 8 << 30}
			source.Kubelet = kubelet.NewSource(&kubelet.Client{Address: k.Address, CA: k.CA, Credential: k.Credential}, source.Max)
			ctx, _ := runGroup(t, dir, set, source, source.Kubelet)
			r := nritest.Accept(t, l)
			_, err := r.Plugin.Configure(ctx, &api.ConfigureRequest{})
			require.NoError(t, err)
			_, err = r.Plugin.Synchronize(ctx, &api.SynchronizeRequest{})
			require.NoError(t, err)
			create := func(id string, pod *api.PodSandbox, name string) error {
				_, err := r.Plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: &api.Container{Id: id, Name: name}})
				return err
			}
			report := func() enginelimits.Report {
				report, err := enginelimits.ReadReport(dir)
				require.NoError(t, err)
				return report
			}
			require.Eventually(t, func() bool {
				return slices.ContainsFunc(report().Engines, func(e enginelimits.Engine) bool { return e.Name == kubelet.Engine && e.Connected })
			}, testfs.Patience, time.Millisecond, "the kubelet is not asked in a request that may not wait for it")
			refused := func() map[string]string {
				found := make(map[string]string)
				for _, c := range report().Refused {
					found[c.ID] = c.Error
				}
				return found
			}
			var creating sync.WaitGroup
			for _, id := range []string{"slow-1", "slow-2"} {
				creating.Go(func() { assert.NoError(t, create(id, pod, "web")) })
			}
			require.NoError(t, create("quick", annotated, "web"))
			creating.Wait()
			const late = "setting the limit takes long, and continues in the background"
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				assert.Equal(c, map[string]string{"slow-1": late, "slow-2": late}, refused())
			}, testfs.Patience, time.Millisecond)
			_, ok := set.Load("slow-1")
			assert.False(t, ok)

			set.slow <- nil
			require.Eventually(t, func() bool { return len(refused()) == 1 }, testfs.Patience, time.Millisecond)
			set.slow <- errdefs.ErrDataLoss
			require.Eventually(t, func() bool {
				for _, said := range refused() {
					return strings.Contains(said, errdefs.ErrDataLoss.Error())
				}
				return false
			}, testfs.Patience, time.Millisecond)
			require.ErrorContains(t, create("stuck", annotated, "bad"), "9G", "a bad size rejects the container in any case")
			assert.Len(t, refused(), 1)
		})
	}
}

// TestLimitTime: containerd waits two seconds, and the answer needs a part of them.
func TestLimitTime(t *testing.T) {
	assert.Less(t, limitTime, api.DefaultPluginRequestTimeout)
	assert.Less(t, kubeletTime, limitTime)
}

// TestManyWaitForTheKubelet: a container that cannot wait for the kubelet, since too many do, is named in the report.
func TestManyWaitForTheKubelet(t *testing.T) {
	dir, socket, l := listen(t)
	source := &Source{Socket: socket, Kubelet: kubelet.NewSource(&kubelet.Client{}, 0)} // which nobody runs
	for n := 0; source.Kubelet.Later(kubelet.Container{Container: enginelimits.Container{ID: fmt.Sprint(n)}}) == nil; n++ {
		require.Less(t, n, 1<<20)
	}
	ctx, _ := runGroup(t, dir, &limits{}, source)
	r := nritest.Accept(t, l)
	_, err := r.Plugin.Configure(ctx, &api.ConfigureRequest{})
	require.NoError(t, err)
	_, err = r.Plugin.Synchronize(ctx, &api.SynchronizeRequest{Containers: []*api.Container{{Id: "late"}}})
	require.NoError(t, err)
	report, err := enginelimits.ReadReport(dir)
	require.NoError(t, err)
	require.Len(t, report.Refused, 1)
	assert.Equal(t, "late", report.Refused[0].ID)
	assert.Equal(t, kubelet.Engine, report.Refused[0].Engine)
}
