package layerref

import (
	"context"
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

// fakeContainers are the containers of containerd, in the namespace test.
type fakeContainers struct {
	containersapi.UnimplementedContainersServer
	containers []*containersapi.Container
}

func (f fakeContainers) Get(ctx context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	for _, c := range f.containers {
		if namespace, _ := namespaces.Namespace(ctx); namespace == "test" && c.GetID() == r.GetID() {
			return &containersapi.GetContainerResponse{Container: c}, nil
		}
	}
	return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
}

func (f fakeContainers) ListStream(_ *containersapi.ListContainersRequest, s containersapi.Containers_ListStreamServer) error {
	for _, c := range f.containers {
		if namespace, _ := namespaces.Namespace(s.Context()); namespace != "test" {
			continue
		}
		if err := s.Send(&containersapi.ListContainerMessage{Container: c}); err != nil {
			return err
		}
	}
	return nil
}

// TestContainerOf: a snapshot leads to its container, whatever that is called, and not to another that is called as the snapshot.
func TestContainerOf(t *testing.T) {
	r := Resolver{Containerd: filepath.Join(t.TempDir(), "sock")}
	serve(t, r, func(server *grpc.Server) {
		containersapi.RegisterContainersServer(server, fakeContainers{containers: []*containersapi.Container{
			{ID: "web", SnapshotKey: "web"}, {ID: "docker"}, {ID: "redis", SnapshotKey: "redis-snapshot"},
			{ID: "a", SnapshotKey: "b"}, {ID: "b", SnapshotKey: "c"}, {ID: "one", SnapshotKey: "both"}, {ID: "two", SnapshotKey: "both"},
		}})
	})
	conn, err := r.connect()
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

// serve serves as the containerd of r until the test ends.
func serve(t *testing.T, r Resolver, register func(server *grpc.Server)) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", r.Containerd)
	require.NoError(t, err)
	server := grpc.NewServer()
	register(server)
	ended := make(chan error)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); require.NoError(t, testfs.Result(ended)) })
}

func TestProcess(t *testing.T) {
	r := Resolver{Containerd: filepath.Join(t.TempDir(), "sock")}
	_, err := r.Process(t.Context(), "test", "web")
	require.Error(t, err, "containerd does not answer")

	serve(t, r, func(server *grpc.Server) {
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
