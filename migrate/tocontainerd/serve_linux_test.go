package tocontainerd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/snapshotter"
)

// Serve serves a containerd with Cowshed on sockets, for the examples. It returns the containerd's address, and a
// directory on Cowshed's filesystem.
func Serve(t *testing.T) (address, mnt string) {
	h := newHost(t)
	dir := t.TempDir()
	own := filepath.Join(dir, "cowshed.sock")
	serve(t, own, func(server *grpc.Server) { snapshotter.Register(server, h.cow, nil) })
	address = filepath.Join(dir, "containerd.sock")
	serve(t, address, func(server *grpc.Server) {
		s := h.services()
		contentapi.RegisterContentServer(server, contentserver.New(s.content))
		snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s.snapshots))
		imagesapi.RegisterImagesServer(server, imagesServer{store: s.images})
		leasesapi.RegisterLeasesServer(server, leasesServer{manager: s.leases})
		introspectionapi.RegisterIntrospectionServer(server, introspectionServer{exports: map[string]string{"address": own, "root": s.root}})
	})
	return address, h.mnt
}

func serve(t *testing.T, socket string, register func(*grpc.Server)) {
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	register(server)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; !errors.Is(err, grpc.ErrServerStopped) { // before it had begun
			assert.NoError(t, err)
		}
	})
}

// introspectionServer has one plugin, the snapshotter.
type introspectionServer struct {
	introspectionapi.UnimplementedIntrospectionServer
	exports map[string]string
}

func (s introspectionServer) Plugins(context.Context, *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{{ID: DefaultSnapshotter, Exports: s.exports}}}, nil
}

// imagesServer has the calls that a run needs.
type imagesServer struct {
	imagesapi.UnimplementedImagesServer
	store images.Store
}

func (s imagesServer) Get(ctx context.Context, r *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	image, err := s.store.Get(ctx, r.GetName())
	return &imagesapi.GetImageResponse{Image: containerdapi.ImageToAPI(image)}, errgrpc.ToGRPC(err)
}

func (s imagesServer) List(ctx context.Context, r *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	list, err := s.store.List(ctx, r.GetFilters()...)
	answer := &imagesapi.ListImagesResponse{}
	for _, image := range list {
		answer.Images = append(answer.Images, containerdapi.ImageToAPI(image))
	}
	return answer, errgrpc.ToGRPC(err)
}

func (s imagesServer) Create(ctx context.Context, r *imagesapi.CreateImageRequest) (*imagesapi.CreateImageResponse, error) {
	image, err := s.store.Create(ctx, containerdapi.ImageFromAPI(r.GetImage()))
	return &imagesapi.CreateImageResponse{Image: containerdapi.ImageToAPI(image)}, errgrpc.ToGRPC(err)
}

func (s imagesServer) Update(ctx context.Context, r *imagesapi.UpdateImageRequest) (*imagesapi.UpdateImageResponse, error) {
	image, err := s.store.Update(ctx, containerdapi.ImageFromAPI(r.GetImage()), r.GetUpdateMask().GetPaths()...)
	return &imagesapi.UpdateImageResponse{Image: containerdapi.ImageToAPI(image)}, errgrpc.ToGRPC(err)
}

// leasesServer has the calls that a run needs.
type leasesServer struct {
	leasesapi.UnimplementedLeasesServer
	manager leases.Manager
}

func (s leasesServer) Create(ctx context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	lease, err := s.manager.Create(ctx, leases.WithID(r.GetID()), leases.WithLabels(r.GetLabels()))
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: lease.ID, Labels: lease.Labels}}, errgrpc.ToGRPC(err)
}

func (s leasesServer) Delete(ctx context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	var opts []leases.DeleteOpt
	if r.GetSync() {
		opts = append(opts, leases.SynchronousDelete)
	}
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.manager.Delete(ctx, leases.Lease{ID: r.GetID()}, opts...))
}

func (s leasesServer) List(ctx context.Context, r *leasesapi.ListRequest) (*leasesapi.ListResponse, error) {
	list, err := s.manager.List(ctx, r.GetFilters()...)
	answer := &leasesapi.ListResponse{}
	for _, lease := range list {
		answer.Leases = append(answer.Leases, &leasesapi.Lease{ID: lease.ID, Labels: lease.Labels})
	}
	return answer, errgrpc.ToGRPC(err)
}

func (s leasesServer) AddResource(ctx context.Context, r *leasesapi.AddResourceRequest) (*emptypb.Empty, error) {
	resource := leases.Resource{ID: r.GetResource().GetID(), Type: r.GetResource().GetType()}
	return &emptypb.Empty{}, errgrpc.ToGRPC(s.manager.AddResource(ctx, leases.Lease{ID: r.GetID()}, resource))
}
