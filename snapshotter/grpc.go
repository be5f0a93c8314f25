package snapshotter

import (
	"context"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
)

// DiffService is a differ that can be served: a *Differ, or a wrapper around it.
type DiffService interface {
	diff.Comparer
	diff.Applier
}

// Register serves a snapshotter, and a differ unless it is nil, with the protocols of containerd's proxy plugins
// of the types "snapshot" and "diff". Register also serves OffersClient
// if the snapshotter is an Offerer, and VolumesClient if it is a Finder.
func Register(server *grpc.Server, s snapshots.Snapshotter, d DiffService) {
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(servable{s}))
	if offerer, ok := s.(Offerer); ok {
		server.RegisterService(&offersDesc, offerer)
	}
	if finder, ok := s.(Finder); ok {
		server.RegisterService(&volumesDesc, finder)
	}
	if d != nil {
		diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(d, d))
	}
}

// servable is a snapshotter whose errors of Walk keep their type, which containerd's service does not see to.
type servable struct{ snapshots.Snapshotter }

func (s servable) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return errgrpc.ToGRPC(s.Snapshotter.Walk(ctx, fn, filters...))
}

func (s servable) Cleanup(ctx context.Context) error {
	if c, ok := s.Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return errdefs.ErrNotImplemented
}
