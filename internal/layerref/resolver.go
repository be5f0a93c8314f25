package layerref

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
)

// Resolver asks the engines of this host.
type Resolver struct {
	DockerAPI  string // address as unix:///run/docker.sock; "" for the usual one
	Containerd string // path of the socket
}

// Snapshot returns the snapshot of a container's root: its namespace and key, as the client of containerd calls them. It asks no
// engine about a reference of the kind Containerd. Returns errdefs.ErrNotFound if there is no such container, and
// errdefs.ErrInvalidArgument if several have the name, or if the reference is of the kind Fork.
func (r Resolver) Snapshot(ctx context.Context, ref Reference) (namespace, key string, err error) {
	switch ref.Kind {
	case Docker:
		key, err = r.ofDocker(ctx, ref.Name)
		return dockerapi.Namespace, key, err
	case Nerdctl:
		key, err = r.ofContainerd(ctx, ref, "labels.\"nerdctl/name\"=="+strconv.Quote(ref.Name))
		return ref.Namespace, key, err
	case CRI:
		key, err = r.ofContainerd(ctx, ref, "id~="+strconv.Quote("^"+regexp.QuoteMeta(ref.Name)))
		return ref.Namespace, key, err
	case Containerd:
		return ref.Namespace, ref.Name, nil
	}
	return "", "", fault.New(errdefs.ErrInvalidArgument, "%s:%s is no container", ref.Kind, ref.Name)
}

func (r Resolver) ofDocker(ctx context.Context, name string) (id string, err error) {
	address := r.DockerAPI
	if address == "" {
		address = dockerapi.DefaultAddress
	}
	client, err := dockerapi.NewClient(address)
	if err != nil {
		return "", err
	}
	defer client.Close()
	container, err := client.Container(ctx, name)
	if err != nil {
		return "", fmt.Errorf("container %s: %w", name, err)
	}
	return container.ID, nil
}

// connect connects to containerd when it is asked something.
func (r Resolver) connect() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+r.Containerd, grpc.WithTransportCredentials(insecure.NewCredentials())) // the socket is root's
}

// Process returns the first process of a container that runs, 0 if it does not run. Docker's containers are in the namespace
// "moby" of containerd.
func (r Resolver) Process(ctx context.Context, namespace, id string) (pid uint32, err error) {
	conn, err := r.connect()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	answer, err := tasksapi.NewTasksClient(conn).Get(namespaces.WithNamespace(ctx, namespace), &tasksapi.GetRequest{ContainerID: id})
	err = errgrpc.ToNative(err)
	switch {
	case errdefs.IsNotFound(err):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("ask containerd for the process of container %s: %w", id, err)
	case answer.GetProcess().GetStatus() == task.Status_STOPPED:
		return 0, nil
	}
	return answer.GetProcess().GetPid(), nil
}

// ofContainerd finds the snapshot of the only container that a filter of containerd lets pass.
func (r Resolver) ofContainerd(ctx context.Context, ref Reference, filter string) (key string, err error) {
	conn, err := r.connect()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	answer, err := containersapi.NewContainersClient(conn).List(namespaces.WithNamespace(ctx, ref.Namespace),
		&containersapi.ListContainersRequest{Filters: []string{filter}})
	if err != nil {
		return "", fmt.Errorf("ask containerd for container %s: %w", ref.Name, errgrpc.ToNative(err))
	}
	found := answer.GetContainers()
	switch {
	case len(found) == 0:
		return "", fault.New(errdefs.ErrNotFound, "container %s in the namespace %s of containerd", ref.Name, ref.Namespace)
	case len(found) > 1:
		return "", fault.New(errdefs.ErrInvalidArgument, "%d containers in the namespace %s of containerd are called %s", len(found), ref.Namespace, ref.Name)
	case found[0].GetSnapshotKey() == "":
		return "", fault.New(errdefs.ErrNotFound, "snapshot of container %s", ref.Name)
	}
	return found[0].GetSnapshotKey(), nil
}
