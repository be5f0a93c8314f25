package main

import (
	"context"
	"errors"
	"regexp"
	"strconv"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/layerref"
)

// limitContainer has the running daemon change the limit of a container's snapshot.
func (a *app) limitContainer(cmd *cobra.Command, ref layerref.Reference, bytes uint64) error {
	c, err := a.daemonConfig(cmd)
	if err != nil {
		return err
	}
	if ref.Snapshot != "" {
		return usagef("a snapshot has no limit: name the container")
	}
	if bytes == 0 {
		return usagef("the limit of a container can be raised, and not be removed: give a size")
	}
	namespace, own, err := daemon.Resolver(c).Snapshot(cmd.Context(), ref)
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
