package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
)

// Prefixes of the names of containers' snapshots, beside those of layers, which have no colon.
const (
	containerdPrefix = "containerd:"
	dockerPrefix     = "docker:"
)

// isContainerName reports whether a name is that of a container of the daemon's, and not of a layer.
func isContainerName(name string) bool {
	return strings.HasPrefix(name, containerdPrefix) || strings.HasPrefix(name, dockerPrefix)
}

// limitContainer has the running daemon change the limit of a container's snapshot.
func (f *daemonFlags) limitContainer(cmd *cobra.Command, name string, bytes uint64) error {
	c, err := f.config(cmd)
	if err != nil {
		return err
	}
	if bytes == 0 {
		return usagef("the limit of a container can be raised, and not be removed: give a size")
	}
	namespace, own, err := snapshotOf(cmd.Context(), c, name)
	if err != nil {
		return err
	}
	return ask(cmd.Context(), c.Address, func(ctx context.Context, conn *grpc.ClientConn) error {
		s := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
		ctx = namespaces.WithNamespace(ctx, namespace)
		key, err := keyOf(ctx, s, namespace, own)
		if err != nil {
			return err
		}
		const label = snapshots.LabelSnapshotMaxSize
		_, err = s.Update(ctx, snapshots.Info{Name: key, Labels: map[string]string{label: strconv.FormatUint(bytes, 10)}}, "labels."+label)
		return err
	})
}

// snapshotOf finds the namespace and key of a container's snapshot, as the client of containerd calls it.
func snapshotOf(ctx context.Context, c daemon.Config, name string) (namespace, own string, err error) {
	if rest, ok := strings.CutPrefix(name, containerdPrefix); ok {
		namespace, own, ok = strings.Cut(rest, "/")
		if !ok || namespace == "" || own == "" {
			return "", "", usagef("%q: say %sNAMESPACE/KEY, such as %sk8s.io/CONTAINER-ID", name, containerdPrefix, containerdPrefix)
		}
		return namespace, own, nil
	}
	address := c.DockerAPI
	if address == "" {
		address = dockerapi.DefaultAddress
	}
	client, err := dockerapi.NewClient(address)
	if err != nil {
		return "", "", err
	}
	defer client.Close()
	container, err := client.Container(ctx, strings.TrimPrefix(name, dockerPrefix))
	if err != nil {
		return "", "", fmt.Errorf("container %s: %w", name, err)
	}
	return dockerapi.Namespace, container.ID, nil
}

// keyOf finds the snapshot that a client of containerd calls own. containerd puts the namespace and a number before that.
func keyOf(ctx context.Context, s snapshots.Snapshotter, namespace, own string) (key string, err error) {
	found := errors.New("found")
	err = s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		key = info.Name
		return found
	}, "name~="+strconv.Quote("^"+regexp.QuoteMeta(namespace)+"/[0-9]+/"+regexp.QuoteMeta(own)+"$"))
	switch {
	case errors.Is(err, found):
		return key, nil
	case err == nil:
		err = failf(errdefs.ErrNotFound, "the daemon has no snapshot %s in the namespace %s", own, namespace)
	}
	return "", err
}
