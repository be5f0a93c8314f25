package nri

import (
	"context"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/enginelimits"
)

// limits are the limits that have been set, by id.
type limits struct{ sync.Map }

func (l *limits) Key(_ context.Context, namespace, own string) (string, error) {
	if namespace != "k8s.io" {
		return "", errdefs.ErrNotFound
	}
	return own, nil
}

func (l *limits) Stat(context.Context, string) (snapshots.Info, error) { return snapshots.Info{}, nil }

func (l *limits) SetLimit(_ context.Context, key string, bytes uint64) error {
	l.Store(key, bytes)
	return nil
}

// runtime is containerd's side of a connection.
type runtime struct {
	api.RuntimeService
	mux        multiplex.Mux
	plugin     api.PluginService
	registered chan *api.RegisterPluginRequest
}

func (r *runtime) RegisterPlugin(_ context.Context, req *api.RegisterPluginRequest) (*api.Empty, error) {
	r.registered <- req
	return &api.Empty{}, nil
}

// accept waits for the plugin to connect and to register.
func accept(t *testing.T, l net.Listener) *runtime {
	t.Helper()
	conn, err := l.Accept()
	require.NoError(t, err)
	r := &runtime{mux: multiplex.Multiplex(conn), registered: make(chan *api.RegisterPluginRequest, 1)}
	t.Cleanup(func() { require.NoError(t, r.mux.Close()) })
	listener, err := r.mux.Listen(multiplex.RuntimeServiceConn)
	require.NoError(t, err)
	server, err := ttrpc.NewServer()
	require.NoError(t, err)
	api.RegisterRuntimeService(server, r)
	go func() { _ = server.Serve(t.Context(), listener) }()
	t.Cleanup(func() { _ = server.Close() })
	to, err := r.mux.Open(multiplex.PluginServiceConn)
	require.NoError(t, err)
	r.plugin = api.NewPluginClient(ttrpc.NewClient(to))
	req := <-r.registered
	assert.Equal(t, "cowshed", req.GetPluginName())
	return r
}

// TestConnection: containerd names containers in parts, creates a good and a bad container, and ends the connection. The source
// connects again.
func TestConnection(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "nri.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	var set limits
	group := enginelimits.NewGroup([]enginelimits.Source{&Source{Socket: socket, Max: 8 << 30}}, &set, enginelimits.NewMetrics(), dir, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { group.Run(ctx) })
	defer running.Wait()
	defer cancel()

	r := accept(t, l)
	configured, err := r.plugin.Configure(ctx, &api.ConfigureRequest{})
	require.NoError(t, err)
	var mask api.EventMask
	mask.Set(api.Event_CREATE_CONTAINER, api.Event_REMOVE_CONTAINER)
	assert.Equal(t, int32(mask), configured.GetEvents())

	_, err = enginelimits.ReadReport(dir)
	require.ErrorIs(t, err, fs.ErrNotExist, "containerd does not ask about new containers yet")
	pod := &api.PodSandbox{Id: "p", Name: "web", Namespace: "default", Annotations: map[string]string{SizeAnnotation: "2G", ContainerSizeAnnotation + "big": "4G", ContainerSizeAnnotation + "bad": "9G"}}
	container := func(id, name string) *api.Container { return &api.Container{Id: id, PodSandboxId: "p", Name: name} }
	answer, err := r.plugin.Synchronize(ctx, &api.SynchronizeRequest{Pods: []*api.PodSandbox{pod}, Containers: []*api.Container{container("1", "one")}, More: true})
	require.NoError(t, err)
	assert.True(t, answer.GetMore())
	answer, err = r.plugin.Synchronize(ctx, &api.SynchronizeRequest{Containers: []*api.Container{container("2", "big"), {Id: "3", PodSandboxId: "none", Name: "other"}}})
	require.NoError(t, err)
	assert.False(t, answer.GetMore())
	report, err := enginelimits.ReadReport(dir)
	require.NoError(t, err)
	assert.True(t, report.Engines[0].Connected)
	for id, want := range map[string]any{"1": uint64(2 << 30), "2": uint64(4 << 30), "3": nil} {
		limit, _ := set.Load(id)
		assert.Equal(t, want, limit, id)
	}

	_, err = r.plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: container("4", "init")})
	require.NoError(t, err)
	limit, _ := set.Load("4")
	assert.Equal(t, uint64(2<<30), limit)
	_, err = r.plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: container("5", "bad")})
	require.ErrorContains(t, err, `cowshed: annotation size.cowshed.dev/bad: invalid argument: size "9G" is more than the 8GiB`)
	_, err = r.plugin.CreateContainer(ctx, &api.CreateContainerRequest{Pod: &api.PodSandbox{}, Container: container("6", "free")})
	require.NoError(t, err)

	require.NoError(t, r.mux.Close())
	accept(t, l) // and it is not configured when everything ends
}
