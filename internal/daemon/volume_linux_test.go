package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

const containerID, snapshotKey = "redis", "redis-snapshot"

// oneContainer is a containerd with one container, whose snapshot has another name.
type oneContainer struct {
	containersapi.UnimplementedContainersServer
}

func (oneContainer) ListStream(_ *containersapi.ListContainersRequest, s containersapi.Containers_ListStreamServer) error {
	return s.Send(&containersapi.ListContainerMessage{Container: &containersapi.Container{ID: containerID, SnapshotKey: snapshotKey}})
}

func (oneContainer) Get(_ context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	if r.GetID() != containerID {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	return &containersapi.GetContainerResponse{Container: &containersapi.Container{
		ID: containerID, SnapshotKey: snapshotKey, Spec: &anypb.Any{Value: []byte(`{"process": {}}`)},
	}}, nil
}

// stoppedTasks are the tasks of containers that are stopped. They tell which was asked for.
type stoppedTasks struct {
	tasksapi.UnimplementedTasksServer
	asked *atomic.Value
}

func (f stoppedTasks) Get(_ context.Context, r *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	f.asked.Store(r.GetContainerID())
	return &tasksapi.GetResponse{Process: &task.Process{Status: task.Status_STOPPED}}, nil
}

// TestContainersOf: commands go to the container that has the volume's snapshot, whatever it is called. That there is none is not that
// it does not run.
func TestContainersOf(t *testing.T) {
	c := Config{ContainerdAddress: filepath.Join(t.TempDir(), "socket")}
	tasks := stoppedTasks{asked: new(atomic.Value)}
	listener, err := net.Listen("unix", c.ContainerdAddress)
	require.NoError(t, err)
	server := grpc.NewServer()
	containersapi.RegisterContainersServer(server, oneContainer{})
	tasksapi.RegisterTasksServer(server, tasks)
	ended := make(chan error)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); require.NoError(t, testfs.Result(ended)) })

	containers := ContainersOf(c)
	command := live.Exec{Volume: volumeOf(snapshotKey), ID: "hook", Args: []string{"true"}, Timeout: testfs.Patience}
	require.ErrorIs(t, containers.Run(t.Context(), command), live.ErrNotRunning)
	require.Equal(t, containerID, tasks.asked.Load())
	command.Volume = volumeOf("another")
	err = containers.Run(t.Context(), command)
	require.ErrorIs(t, err, live.ErrNoContainer)
	require.NotErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, containers.Kill(t.Context(), command), "it is gone, and its processes")
}

// volumeOf is the name of a volume of a container's snapshot.
func volumeOf(key string) string { return "s-" + strings.Repeat("A", 26) + ".test_2f1_2f" + key }

// TestVolumeOfSilent: the question to a daemon that does not answer ends. The caller gives no time for it, since that would count
// for a recovery without a daemon too.
func TestVolumeOfSilent(t *testing.T) {
	t.Parallel()
	c := Config{Root: t.TempDir(), Address: filepath.Join(t.TempDir(), "socket")}
	require.NoError(t, os.Mkdir(filepath.Join(c.Root, containerdDir), 0o700))
	listener, err := net.Listen("unix", c.Address)
	require.NoError(t, err)
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), testfs.Patience)
	defer cancel()
	_, err = VolumeOf(ctx, c, slog.New(slog.DiscardHandler), "test", "web")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, ctx.Err())
}
