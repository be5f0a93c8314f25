package layerref

import (
	"context"
	"net"
	"path/filepath"
	"testing"

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

func TestProcess(t *testing.T) {
	r := Resolver{Containerd: filepath.Join(t.TempDir(), "sock")}
	_, err := r.Process(t.Context(), "test", "web")
	require.Error(t, err, "containerd does not answer")

	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", r.Containerd)
	require.NoError(t, err)
	server := grpc.NewServer()
	tasksapi.RegisterTasksServer(server, fakeTasks{tasks: map[string]*task.Process{
		"test/web": {Pid: 42, Status: task.Status_RUNNING}, "test/stopped": {Pid: 43, Status: task.Status_STOPPED},
	}})
	ended := make(chan error)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); require.NoError(t, testfs.Result(ended)) })
	for id, want := range map[string]uint32{"web": 42, "stopped": 0, "none": 0} {
		pid, err := r.Process(t.Context(), "test", id)
		require.NoError(t, err, id)
		assert.Equal(t, want, pid, id)
	}
	pid, err := r.Process(t.Context(), "other", "web")
	require.NoError(t, err)
	assert.Zero(t, pid)
}
