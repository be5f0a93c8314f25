// Package containername finds the names by which people know containers.
package containername

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/snapshotter"
)

const (
	answerTimeout = 2 * time.Second
	maxName       = 256 // runes: names come from clients of containerd
)

// Labels of containers, as CRI and nerdctl set them.
const (
	podNamespaceLabel = "io.kubernetes.pod.namespace"
	podLabel          = "io.kubernetes.pod.name"
	containerLabel    = "io.kubernetes.container.name"
	sandboxLabel      = "io.cri-containerd.kind" // "sandbox" for the container that holds a pod together
	nerdctlLabel      = "nerdctl/name"
)

// ID is the identity of a container.
type ID struct {
	Namespace string // of containerd; "" if it is not known
	ID        string
}

// Of tells the container whose snapshot has a volume of the daemon. ok is false if the snapshot is none of a container.
func Of(volume string) (id ID, ok bool) {
	key, whole := snapshotter.KeyOfVolume(volume)
	if !whole { // no engine's container has so long a key, but layers do
		return ID{}, !strings.Contains(key, "sha256:")
	}
	if snapshotter.UseOf(key) != snapshotter.UseContainer {
		return ID{}, false
	}
	id.Namespace, id.ID = snapshotter.SplitKey(key)
	return id, true
}

// Name is the name by which people know a container.
type Name struct {
	PodNamespace, Pod string // of Kubernetes, else ""
	Container         string // "": there is no name
}

// Names asks engines for names. One engine that does not answer does not matter to the others. It is safe for concurrent use.
type Names struct {
	containerd containersapi.ContainersClient
	docker     *dockerapi.Client // nil: none
}

// New makes a Names that asks containerd by a connection, and Docker unless docker is nil.
func New(containerd grpc.ClientConnInterface, docker *dockerapi.Client) *Names {
	return &Names{containersapi.NewContainersClient(containerd), docker}
}

// Name asks for the name of a container. Returns errdefs.ErrNotFound if the engine does not know it.
func (n *Names) Name(ctx context.Context, id ID) (Name, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if id.Namespace == dockerapi.Namespace && n.docker != nil {
		c, err := n.docker.Container(ctx, id.ID)
		return Name{Container: clean(strings.TrimPrefix(c.Name, "/"))}, err
	}
	ctx = namespaces.WithNamespace(ctx, id.Namespace)
	answer, err := n.containerd.Get(ctx, &containersapi.GetContainerRequest{ID: id.ID})
	if err != nil {
		return Name{}, fmt.Errorf("container %s in the namespace %s: %w", id.ID, id.Namespace, errgrpc.ToNative(err))
	}
	labels := answer.GetContainer().GetLabels()
	name := Name{PodNamespace: clean(labels[podNamespaceLabel]), Pod: clean(labels[podLabel]), Container: clean(labels[containerLabel])}
	switch {
	case labels[sandboxLabel] == "sandbox":
		name.Container = "sandbox"
	case name.Container == "":
		name.Container = clean(labels[nerdctlLabel])
	}
	return name, nil
}

// clean is a name on one line, and not too long.
func clean(name string) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, name))
	return string(runes[:min(len(runes), maxName)])
}
