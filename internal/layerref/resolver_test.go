package layerref

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/testfs"
)

// fakeTasks are the tasks of containerd by their names, in the namespace test.
type fakeTasks struct {
	tasksapi.UnimplementedTasksServer
	tasks map[string]*task.Process
}

func (f fakeTasks) Get(ctx context.Context, r *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	namespace, _ := namespaces.Namespace(ctx)
	p, ok := f.tasks[namespace+"/"+r.GetContainerID()]
	if !ok {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	return &tasksapi.GetResponse{Process: p}, nil
}

// TestContainerOf: a snapshot leads to its container, whatever that is called, and not to another that is called as the snapshot.
func TestContainerOf(t *testing.T) {
	r := Resolver{Containerd: filepath.Join(t.TempDir(), "sock")}
	serve(t, r.Containerd, func(server *grpc.Server) {
		containersapi.RegisterContainersServer(server, &fakeContainers{containers: []*containersapi.Container{
			{ID: "web", SnapshotKey: "web"}, {ID: "docker"}, {ID: "redis", SnapshotKey: "redis-snapshot"},
			{ID: "a", SnapshotKey: "b"}, {ID: "b", SnapshotKey: "c"}, {ID: "one", SnapshotKey: "both"}, {ID: "two", SnapshotKey: "both"},
		}})
	})
	conn, err := containerdapi.Dial(r.Containerd)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	for key, want := range map[string]string{"web": "web", "docker": "docker", "redis-snapshot": "redis", "b": "a", "c": "b"} {
		c, err := ContainerOf(t.Context(), conn, "test", key)
		require.NoError(t, err, key)
		assert.Equal(t, want, c.GetID(), key)
	}
	for _, key := range []string{"a", "redis", "none"} {
		_, err := ContainerOf(t.Context(), conn, "test", key)
		require.ErrorIs(t, err, errdefs.ErrNotFound, key)
	}
	_, err = ContainerOf(t.Context(), conn, "other", "web")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = ContainerOf(t.Context(), conn, "test", "both")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}

func TestProcess(t *testing.T) {
	r := Resolver{Containerd: filepath.Join(t.TempDir(), "sock")}
	_, err := r.Process(t.Context(), "test", "web")
	require.Error(t, err, "containerd does not answer")

	serve(t, r.Containerd, func(server *grpc.Server) {
		tasksapi.RegisterTasksServer(server, fakeTasks{tasks: map[string]*task.Process{
			"test/web": {Pid: 42, Status: task.Status_RUNNING}, "test/stopped": {Pid: 43, Status: task.Status_STOPPED},
		}})
	})
	for id, want := range map[string]uint32{"web": 42, "stopped": 0, "none": 0} {
		pid, err := r.Process(t.Context(), "test", id)
		require.NoError(t, err, id)
		assert.Equal(t, want, pid, id)
	}
	pid, err := r.Process(t.Context(), "other", "web")
	require.NoError(t, err)
	assert.Zero(t, pid)
}

// serve serves services of containerd until the test ends.
func serve(t *testing.T, socket string, register func(*grpc.Server)) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	register(server)
	ended := make(chan error)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); require.NoError(t, testfs.Result(ended)) })
}

// fakeContainers are the containers of containerd in the namespace test.
type fakeContainers struct {
	containersapi.UnimplementedContainersServer
	containers []*containersapi.Container
	filters    [][]string // of the lists that were asked for
}

func (f *fakeContainers) Get(ctx context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	namespace, _ := namespaces.Namespace(ctx)
	for _, c := range f.containers {
		if namespace == "test" && c.GetID() == r.GetID() {
			return &containersapi.GetContainerResponse{Container: c}, nil
		}
	}
	return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
}

func (f *fakeContainers) List(context.Context, *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	return &containersapi.ListContainersResponse{Containers: f.containers}, nil
}

func (f *fakeContainers) ListStream(r *containersapi.ListContainersRequest, stream containersapi.Containers_ListStreamServer) error {
	f.filters = append(f.filters, r.GetFilters())
	if namespace, _ := namespaces.Namespace(stream.Context()); namespace != "test" {
		return nil
	}
	for _, c := range f.containers {
		if err := stream.Send(&containersapi.ListContainerMessage{Container: c}); err != nil {
			return err
		}
	}
	return nil
}

// TestContainerOfFullNode: the container of a snapshot is found among containers whose specs are too large for one message. They are
// not listed if the container has the id of the snapshot.
func TestContainerOfFullNode(t *testing.T) {
	f := &fakeContainers{}
	for i := range 40 {
		id := fmt.Sprintf("web-%d", i)
		f.containers = append(f.containers, &containersapi.Container{
			ID: id, SnapshotKey: id, Snapshotter: "cowshed", Image: "debian:12", Spec: &anypb.Any{Value: make([]byte, 512<<10)},
		})
	}
	f.containers[7].SnapshotKey, f.containers[8].SnapshotKey = "other-key", ""
	r := Resolver{Containerd: filepath.Join(t.TempDir(), "sock")}
	serve(t, r.Containerd, func(server *grpc.Server) { containersapi.RegisterContainersServer(server, f) })

	container := func(key string) (Container, error) {
		return r.Container(t.Context(), Reference{Kind: Containerd, Namespace: "test", Name: key})
	}
	c, err := container("web-3")
	require.NoError(t, err)
	assert.Equal(t, Container{Namespace: "test", Snapshotter: "cowshed", Key: "web-3", Image: "debian:12"}, c)
	assert.Empty(t, f.filters)
	c, err = container("other-key")
	require.NoError(t, err)
	assert.Equal(t, "other-key", c.Key)
	for _, key := range []string{"web-7", "web-8", "none"} {
		_, err = container(key)
		require.ErrorIs(t, err, errdefs.ErrNotFound, key)
	}
	assert.Len(t, f.filters, 3, "web-8 has the id of the key")
}
