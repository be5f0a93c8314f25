package layerref

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/containerdapi"
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
	if ref.Kind == Containerd {
		return ref.Namespace, ref.Name, nil
	}
	c, err := r.Container(ctx, ref)
	return c.Namespace, c.Key, err
}

// Container is a container, as its engine knows it.
type Container struct {
	Namespace   string        // of containerd
	Snapshotter string        // as containerd calls it
	Key         string        // of the snapshot of its root
	Image       string        // name
	Target      digest.Digest // of the manifest or index of the image; "": ask containerd for the name
}

// Container describes a container. A reference of the kind Containerd names the snapshot of its root. The errors are those of Snapshot.
func (r Resolver) Container(ctx context.Context, ref Reference) (Container, error) {
	switch {
	case ref.Kind == Docker, ref.Kind == Containerd && ref.Namespace == dockerapi.Namespace:
		return r.ofDocker(ctx, ref.Name)
	case ref.Kind == Nerdctl:
		return r.ofContainerd(ctx, ref, "labels.\"nerdctl/name\"=="+strconv.Quote(ref.Name))
	case ref.Kind == CRI:
		return r.ofContainerd(ctx, ref, "id~="+strconv.Quote("^"+regexp.QuoteMeta(ref.Name)))
	case ref.Kind == Containerd:
		return r.ofContainerd(ctx, ref)
	}
	return Container{}, fault.New(errdefs.ErrInvalidArgument, "%s:%s is no container", ref.Kind, ref.Name)
}

func (r Resolver) ofDocker(ctx context.Context, name string) (c Container, err error) {
	address := r.DockerAPI
	if address == "" {
		address = dockerapi.DefaultAddress
	}
	client, err := dockerapi.NewClient(address)
	if err != nil {
		return c, err
	}
	defer client.Close()
	container, err := client.Container(ctx, name)
	if err != nil {
		return c, fmt.Errorf("container %s: %w", name, err)
	}
	c = Container{
		Namespace: dockerapi.Namespace, Snapshotter: container.Driver, Key: container.ID,
		Image: container.Config.Image, Target: digest.Digest(container.Image),
	}
	if container.ImageManifestDescriptor != nil {
		c.Target = container.ImageManifestDescriptor.Digest
	}
	return c, nil
}

// Process returns the first process of a container that runs, 0 if it does not run. Docker's containers are in the namespace
// "moby" of containerd.
func (r Resolver) Process(ctx context.Context, namespace, id string) (pid uint32, err error) {
	conn, err := containerdapi.Dial(r.Containerd)
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

// ContainerOf returns the container of containerd whose root is a snapshot, by its key as the client calls it. conn leads to containerd.
// Returns errdefs.ErrNotFound if there is none, and errdefs.ErrFailedPrecondition if there are several.
func ContainerOf(ctx context.Context, conn grpc.ClientConnInterface, namespace, key string) (*containersapi.Container, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	client := containersapi.NewContainersClient(conn)
	answer, err := client.Get(ctx, &containersapi.GetContainerRequest{ID: key}) // the engines give both one name
	if err == nil && hasRoot(answer.GetContainer(), key) {
		return answer.GetContainer(), nil
	}
	var found *containersapi.Container
	if err = errgrpc.ToNative(err); err == nil || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // not each key can be an id
		found, err = search(ctx, client, key)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask containerd for the container with the snapshot %s: %w", key, err)
	case found == nil:
		return nil, fault.New(errdefs.ErrNotFound, "container with the snapshot %s in the namespace %s of containerd", key, namespace)
	}
	return found, nil
}

// search looks for the container with a snapshot among all of a namespace, nil if there is none. containerd has no filter for that.
func search(ctx context.Context, client containersapi.ContainersClient, key string) (*containersapi.Container, error) {
	found, err := list(ctx, client)
	found = slices.DeleteFunc(found, func(c *containersapi.Container) bool { return !hasRoot(c, key) })
	switch {
	case err != nil || len(found) == 0:
		return nil, err
	case len(found) > 1:
		return nil, fault.New(errdefs.ErrFailedPrecondition, "%s and %s both have it", found[0].GetID(), found[1].GetID())
	}
	return found[0], nil
}

// hasRoot reports whether a snapshot is the root of a container. Docker does not tell containerd, and names the snapshot as the container.
func hasRoot(c *containersapi.Container, key string) bool {
	return c.GetSnapshotKey() == key || c.GetSnapshotKey() == "" && c.GetID() == key
}

// ofContainerd finds the only container that the filters of containerd let pass. Without filters, it is that with the snapshot that
// the reference names.
func (r Resolver) ofContainerd(ctx context.Context, ref Reference, filters ...string) (c Container, err error) {
	conn, err := containerdapi.Dial(r.Containerd)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var found *containersapi.Container
	if len(filters) == 0 {
		found, err = ContainerOf(ctx, conn, ref.Namespace, ref.Name)
	} else {
		found, err = filtered(ctx, conn, ref, filters...)
	}
	if err != nil {
		return c, err
	}
	if found.GetSnapshotKey() == "" {
		return c, fault.New(errdefs.ErrNotFound, "snapshot of container %s", ref.Name)
	}
	return Container{Namespace: ref.Namespace, Snapshotter: found.GetSnapshotter(), Key: found.GetSnapshotKey(), Image: found.GetImage()}, nil
}

// filtered finds the only container that the filters let pass.
func filtered(ctx context.Context, conn grpc.ClientConnInterface, ref Reference, filters ...string) (*containersapi.Container, error) {
	found, err := list(namespaces.WithNamespace(ctx, ref.Namespace), containersapi.NewContainersClient(conn), filters...)
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask containerd for container %s: %w", ref.Name, err)
	case len(found) == 0:
		return nil, fault.New(errdefs.ErrNotFound, "container %s in the namespace %s of containerd", ref.Name, ref.Namespace)
	case len(found) > 1:
		return nil, fault.New(errdefs.ErrInvalidArgument, "%d containers in the namespace %s of containerd are called %s", len(found), ref.Namespace, ref.Name)
	}
	return found[0], nil
}

// list lists containers without their specs, one by one: all of a host may be too much for one message.
func list(ctx context.Context, client containersapi.ContainersClient, filters ...string) (found []*containersapi.Container, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.ListStream(ctx, &containersapi.ListContainersRequest{Filters: filters})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, errgrpc.ToNative(err)
		}
		c := message.GetContainer()
		c.Spec = nil
		found = append(found, c)
	}
}
