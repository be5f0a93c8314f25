package snapshotter

import (
	"context"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// VolumeOf returns the volume of the snapshot that a client of containerd calls key in its namespace. Returns
// errdefs.ErrNotFound if there is no such snapshot, and errdefs.ErrFailedPrecondition if the snapshot is a view.
func (s *Snapshotter) VolumeOf(ctx context.Context, namespace, key string) (string, error) {
	own, err := s.Key(ctx, namespace, key)
	if err != nil {
		return "", err
	}
	r, err := s.read(ctx, own)
	if err == nil && r.info.Kind == snapshots.KindView {
		err = fault.New(errdefs.ErrFailedPrecondition, "it is a view, and a view has no volume of its own: name its parent")
	}
	return r.volume, wrap("find the volume of snapshot", key, err)
}

// Finder is a snapshotter that tells the volumes of snapshots: a *Snapshotter, or a wrapper around it.
type Finder interface {
	VolumeOf(ctx context.Context, namespace, key string) (string, error)
}

// The service has one method, and its messages are containerd's. The volume is the name in the answer.
const (
	volumesService = "cowshed.snapshotter.v1.Volumes"
	volumeOfMethod = "VolumeOf"
)

var volumesDesc = grpc.ServiceDesc{
	ServiceName: volumesService,
	HandlerType: (*Finder)(nil),
	Methods: []grpc.MethodDesc{
		methodOf(volumesService, volumeOfMethod, func(ctx context.Context, finder Finder, namespace string, r *snapshotsapi.StatSnapshotRequest) (any, error) {
			volume, err := finder.VolumeOf(ctx, namespace, r.GetKey())
			return &snapshotsapi.StatSnapshotResponse{Info: &snapshotsapi.Info{Name: volume}}, err
		}),
	},
}

// VolumesClient asks a snapshotter that another process serves for the volumes of snapshots.
type VolumesClient struct{ Conn grpc.ClientConnInterface }

// VolumeOf is Snapshotter.VolumeOf. Returns errdefs.ErrNotImplemented if the server is of a version without VolumeOf.
func (c VolumesClient) VolumeOf(ctx context.Context, namespace, key string) (string, error) {
	answer := new(snapshotsapi.StatSnapshotResponse)
	ctx = namespaces.WithNamespace(ctx, namespace)
	err := c.Conn.Invoke(ctx, "/"+volumesService+"/"+volumeOfMethod, &snapshotsapi.StatSnapshotRequest{Key: key}, answer)
	return answer.GetInfo().GetName(), errgrpc.ToNative(err)
}
