package containerexec

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// fakeContainers has the container web in the namespace test.
type fakeContainers struct {
	containersapi.UnimplementedContainersServer
}

// fake has the processes of web. They end with a status, or when they are killed.
type fake struct {
	tasksapi.UnimplementedTasksServer
	status  uint32
	hangs   bool
	deaf    bool // kills do not reach the process, as before it is started
	stopped bool
	failing string // a call that does not find something

	mu        sync.Mutex
	processes map[string]chan struct{} // closed when the process has ended
	spec      []byte
}

func (fakeContainers) Get(ctx context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	if namespace, _ := namespaces.Namespace(ctx); namespace != "test" || r.GetID() != "web" {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	const spec = `{"process": {"args": ["server"], "terminal": true, "consoleSize": {}, "cwd": "/srv", "env": ["A=1"], "user": {"uid": 1000}, "noNewPrivileges": true}}`
	return &containersapi.GetContainerResponse{Container: &containersapi.Container{ID: "web", Spec: &anypb.Any{Value: []byte(spec)}}}, nil
}

func (f *fake) Get(context.Context, *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	if err := f.fails("task"); err != nil {
		return nil, err
	}
	status := task.Status_RUNNING
	if f.stopped {
		status = task.Status_STOPPED
	}
	return &tasksapi.GetResponse{Process: &task.Process{Status: status}}, nil
}

func (f *fake) process(id string) (chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ended, ok := f.processes[id]
	if !ok {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	return ended, nil
}

// fails is the error of a call that fails.
func (f *fake) fails(call string) error {
	if f.failing == call {
		return errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	return nil
}

func (f *fake) Exec(_ context.Context, r *tasksapi.ExecProcessRequest) (*emptypb.Empty, error) {
	if err := f.fails("exec"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.processes[r.GetExecID()], f.spec = make(chan struct{}), r.GetSpec().GetValue()
	return &emptypb.Empty{}, nil
}

func (f *fake) Start(_ context.Context, r *tasksapi.StartRequest) (*tasksapi.StartResponse, error) {
	if err := f.fails("start"); err != nil {
		return nil, err
	}
	ended, err := f.process(r.GetExecID())
	if err == nil && !f.hangs {
		close(ended)
	}
	return &tasksapi.StartResponse{}, err
}

func (f *fake) Wait(ctx context.Context, r *tasksapi.WaitRequest) (*tasksapi.WaitResponse, error) {
	if err := f.fails("wait"); err != nil {
		return nil, err
	}
	ended, err := f.process(r.GetExecID())
	if err != nil {
		return nil, err
	}
	select {
	case <-ended:
		return &tasksapi.WaitResponse{ExitStatus: f.status}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fake) Kill(_ context.Context, r *tasksapi.KillRequest) (*emptypb.Empty, error) {
	ended, err := f.process(r.GetExecID())
	if err != nil {
		return nil, err
	}
	if f.deaf {
		return nil, errgrpc.ToGRPC(errdefs.ErrFailedPrecondition)
	}
	select {
	case <-ended:
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	default:
		close(ended)
	}
	return &emptypb.Empty{}, nil
}

func (f *fake) DeleteProcess(_ context.Context, r *tasksapi.DeleteProcessRequest) (*tasksapi.DeleteResponse, error) {
	ended, err := f.process(r.GetExecID())
	if err != nil {
		return nil, err
	}
	select {
	case <-ended:
	default:
		return nil, errgrpc.ToGRPC(errdefs.ErrFailedPrecondition) // it still runs; containerd's shim for runc answers ErrUnknown
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.processes, r.GetExecID())
	return &tasksapi.DeleteResponse{}, nil
}

func serve(t *testing.T, f *fake) *grpc.ClientConn {
	t.Helper()
	f.processes = make(map[string]chan struct{})
	socket := filepath.Join(t.TempDir(), "sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	tasksapi.RegisterTasksServer(server, f)
	containersapi.RegisterContainersServer(server, fakeContainers{})
	ended := make(chan error)
	go func() { ended <- server.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		server.Stop()
		require.NoError(t, testfs.Result(ended))
	})
	return conn
}

func TestRun(t *testing.T) {
	command := Command{Namespace: "test", Container: "web", ID: "hook", Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"B=2"}, Timeout: testfs.Patience}
	f := &fake{}
	conn := serve(t, f)
	require.NoError(t, command.Run(t.Context(), conn))
	var spec map[string]any
	require.NoError(t, json.Unmarshal(f.spec, &spec))
	assert.Equal(t, map[string]any{
		"args": []any{"/bin/sh", "-c", "true"}, "terminal": false, "cwd": "/srv", "env": []any{"A=1", "B=2"},
		"user": map[string]any{"uid": 1000.}, "noNewPrivileges": true,
	}, spec, "the container's own process, but for the command")
	assert.Empty(t, f.processes, "nothing is left")

	f.status = 3
	err := command.Run(t.Context(), conn)
	require.ErrorIs(t, err, errdefs.ErrAborted)
	require.ErrorContains(t, err, "exit status 3")
	assert.Empty(t, f.processes)

	f.hangs = true
	command.Timeout = 10 * time.Millisecond
	require.ErrorIs(t, command.Run(t.Context(), conn), context.DeadlineExceeded)
	assert.Empty(t, f.processes, "it was killed")
	command.Timeout = testfs.Patience
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errdefs.ErrDataLoss)
	require.ErrorIs(t, command.Run(ctx, conn), errdefs.ErrDataLoss, "the cause")

	f.stopped = true
	require.ErrorIs(t, command.Run(t.Context(), conn), live.ErrNotRunning)
	require.NoError(t, command.Kill(t.Context(), conn), "there is nothing to kill")
}

// late is a context past its deadline that has not ended yet.
type late struct{ context.Context }

func (late) Deadline() (time.Time, bool) { return time.Unix(0, 0), true }

// TestRunEndedByServer: containerd ends a call at its deadline, before the context does.
func TestRunEndedByServer(t *testing.T) {
	command := Command{Namespace: "test", Container: "web", ID: "hook", Args: []string{"/bin/sh", "-c", "true"}, Timeout: testfs.Patience}
	conn := serve(t, &fake{})
	ctx := late{t.Context()}
	require.ErrorIs(t, command.Run(ctx, conn), context.DeadlineExceeded)
	require.NoError(t, ctx.Err())
}

// TestRunNotFound: ErrNotFound of containerd is live.ErrNotRunning only if it is about the task, before the command.
func TestRunNotFound(t *testing.T) {
	command := Command{Namespace: "test", Container: "web", ID: "hook", Args: []string{"/bin/sh", "-c", "true"}, Timeout: testfs.Patience}
	f := &fake{}
	conn := serve(t, f)
	for _, f.failing = range []string{"exec", "start", "wait"} {
		err := command.Run(t.Context(), conn)
		require.ErrorIs(t, err, errdefs.ErrAborted, f.failing)
		require.NotErrorIs(t, err, errdefs.ErrNotFound, f.failing)
		require.NotErrorIs(t, err, live.ErrNotRunning, f.failing)
		clear(f.processes)
	}
	f.failing = "task"
	require.ErrorIs(t, command.Run(t.Context(), conn), live.ErrNotRunning)
	f.failing, command.Container = "", "none"
	err := command.Run(t.Context(), conn)
	require.ErrorIs(t, err, errdefs.ErrAborted)
	require.NotErrorIs(t, err, errdefs.ErrNotFound)
}

// TestKillOfRunning: a process that still runs after Kill is an error, or else a post command would be run beside it.
func TestKillOfRunning(t *testing.T) {
	command := Command{Namespace: "test", Container: "web", ID: "hook"}
	f := &fake{deaf: true}
	conn := serve(t, f)
	f.processes["hook"] = make(chan struct{})
	require.ErrorIs(t, command.Kill(t.Context(), conn), errdefs.ErrFailedPrecondition)
	assert.Contains(t, f.processes, "hook")
	f.deaf = false
	require.NoError(t, command.Kill(t.Context(), conn))
	assert.Empty(t, f.processes)
}
