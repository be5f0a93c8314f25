package main

import (
	"context"
	"errors"
	"regexp"
	"strconv"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
)

// limitContainer has the running daemon change the limit of a container's snapshot.
func (a *app) limitContainer(cmd *cobra.Command, ref layerref.Reference, bytes uint64) error {
	c, err := a.daemonConfig(cmd)
	if err != nil {
		return err
	}
	return ask(cmd.Context(), c.Address, func(ctx context.Context, conn *grpc.ClientConn) error {
		s := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
		return layerstore.LimitContainer(ctx, ref, bytes, daemon.Resolver(c), servedSnapshots{s})
	})
}

// servedSnapshots are the snapshots of a daemon that runs.
type servedSnapshots struct{ snapshots.Snapshotter }

// Key implements layerstore.Limiter. containerd puts the namespace and a number before the name that its client knows.
func (s servedSnapshots) Key(ctx context.Context, namespace, own string) (key string, err error) {
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
