// Package containerexec runs commands in containers of containerd, whichever engine has made them.
package containerexec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/live"
)

// Command is a command in a container.
type Command struct {
	Namespace, Container string // as containerd calls them
	// ID is the name of the process in the container, for Kill. No other process of the container may have it.
	ID      string
	Args    []string
	Env     []string // as NAME=value, besides the environment of the container
	Timeout time.Duration
}

// endTimeout is how long containerd may take to kill a process and forget it.
const endTimeout = 10 * time.Second

// processType is the type of a process's specification, as containerd names it.
const processType = "types.containerd.io/opencontainers/runtime-spec/1/Process"

// Run runs the command as the container's first process is run: with its user, rights, directory and environment. If that takes longer
// than the timeout, or if ctx is done, the process is killed. The processes that it has started may go on. Its output is lost. Returns
// live.ErrNotRunning if the container does not run, ErrAborted if the command fails, and context.DeadlineExceeded or the cause of ctx if
// it was killed. No error is ErrNotFound.
func (c Command) Run(ctx context.Context, conn grpc.ClientConnInterface) (err error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, c.Namespace), c.Timeout)
	defer cancel()
	tasks := tasksapi.NewTasksClient(conn)
	spec, err := c.process(ctx, conn)
	if err == nil {
		err = c.checkRuns(ctx, tasks)
	}
	switch {
	case err != nil && over(ctx) != nil:
		return c.wrap(over(ctx))
	case errdefs.IsNotFound(err):
		return c.wrap(aborted(err))
	case err != nil:
		return c.wrap(err)
	}
	defer func() { // also if a call below happens later
		left := c.Kill(context.WithoutCancel(ctx), conn)
		if err != nil { // a command that has succeeded leaves an entry at most
			err = errors.Join(err, left)
		}
	}()
	status, err := c.start(ctx, tasks, spec)
	switch {
	case err != nil && over(ctx) != nil:
		return c.wrap(over(ctx))
	case err != nil:
		return c.wrap(aborted(err))
	case status != 0:
		return c.wrap(fault.New(errdefs.ErrAborted, "%s: exit status %d", c.Args[0], status))
	}
	return nil
}

// over is the cause of a context that is done, or past its deadline. containerd knows the deadline, and may end a call a moment
// before the context ends.
func over(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && ctx.Err() == nil && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return context.Cause(ctx)
}

// start starts the process and waits for its end.
func (c Command) start(ctx context.Context, tasks tasksapi.TasksClient, spec *anypb.Any) (status uint32, err error) {
	if _, err := tasks.Exec(ctx, &tasksapi.ExecProcessRequest{ContainerID: c.Container, ExecID: c.ID, Spec: spec}); err != nil {
		return 0, err
	}
	if _, err := tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: c.Container, ExecID: c.ID}); err != nil {
		return 0, err
	}
	ended, err := tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: c.Container, ExecID: c.ID})
	return ended.GetExitStatus(), err
}

// aborted is an error of containerd without its kind: ErrNotFound of such a call may be about anything, and the command may have begun.
func aborted(err error) error {
	return fault.New(errdefs.ErrAborted, "%v", errgrpc.ToNative(err))
}

func (c Command) wrap(err error) error { return fmt.Errorf("container %s: %w", c.Container, err) }

// checkRuns returns live.ErrNotRunning if the container does not run. Nothing else does.
func (c Command) checkRuns(ctx context.Context, tasks tasksapi.TasksClient) error {
	answer, err := tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: c.Container})
	err = errgrpc.ToNative(err)
	if errdefs.IsNotFound(err) || err == nil && answer.GetProcess().GetStatus() == task.Status_STOPPED {
		return live.ErrNotRunning
	}
	return err
}

// process is the specification of the process: that of the container's first one with other arguments.
func (c Command) process(ctx context.Context, conn grpc.ClientConnInterface) (*anypb.Any, error) {
	answer, err := containersapi.NewContainersClient(conn).Get(ctx, &containersapi.GetContainerRequest{ID: c.Container})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	var spec struct {
		Process map[string]json.RawMessage `json:"process"`
	}
	if err := json.Unmarshal(answer.GetContainer().GetSpec().GetValue(), &spec); err != nil {
		return nil, fault.As(errdefs.ErrDataLoss, err)
	}
	if spec.Process == nil {
		return nil, fault.New(errdefs.ErrDataLoss, "its specification has no process")
	}
	var env []string
	if raw, ok := spec.Process["env"]; ok {
		if err := json.Unmarshal(raw, &env); err != nil {
			return nil, fault.As(errdefs.ErrDataLoss, err)
		}
	}
	for key, value := range map[string]any{"args": c.Args, "env": append(env, c.Env...), "terminal": false} {
		if spec.Process[key], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	delete(spec.Process, "consoleSize")
	delete(spec.Process, "commandLine")
	value, err := json.Marshal(spec.Process)
	return &anypb.Any{TypeUrl: processType, Value: value}, err
}

// Kill kills the process if it runs, and forgets it. A process that is not there is no error, nor a container that does not run.
func (c Command) Kill(ctx context.Context, conn grpc.ClientConnInterface) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, c.Namespace), endTimeout)
	defer cancel()
	tasks := tasksapi.NewTasksClient(conn)
	_, err := tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: c.Container, ExecID: c.ID, Signal: uint32(syscall.SIGKILL)})
	if err == nil {
		_, err = tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: c.Container, ExecID: c.ID})
	}
	if err == nil || isGone(err) { // it may have ended by itself
		_, err = tasks.DeleteProcess(ctx, &tasksapi.DeleteProcessRequest{ContainerID: c.Container, ExecID: c.ID})
	}
	if err = errgrpc.ToNative(err); err == nil || errdefs.IsNotFound(err) { // a process that runs may be ErrFailedPrecondition
		return nil
	}
	return c.wrap(fmt.Errorf("end the process %s: %w", c.ID, err))
}

// isGone reports whether an error of Kill or Wait means that the process has ended, or was not started.
func isGone(err error) bool {
	err = errgrpc.ToNative(err)
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)
}
